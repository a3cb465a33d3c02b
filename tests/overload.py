"""Requests at a constant rate, whether answers come or not: `python -m tests.overload PORT RATE SECONDS PICTURE`.

In a process of its own, so that its work delays nobody else's clock. It prints "sent" when it has sent the last one,
and a JSON object when it has the answers. A request whose turn finds every connection waiting is not sent, but counted.
"""

import asyncio
import json
import sys
import time
from collections import Counter
from pathlib import Path

import uvloop

from benchmarks.load import post

CONNECTIONS = 2000
PATIENCE_S = 60.0
LENGTH = b"\r\ncontent-length: "
PACE_S = 0.001  # requests that are due within it are sent together: a wake-up costs as much as a request


class Connection(asyncio.Protocol):
    """One connection; it is idle, or waits for one answer."""

    def __init__(self, sender):
        self.sender = sender
        self.begun = None
        self.buffer = b""

    def connection_made(self, transport):
        self.transport = transport

    def send(self, request, begun):
        self.begun = begun
        self.transport.write(request)

    def data_received(self, data):
        self.buffer = self.buffer + data if self.buffer else data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.index(LENGTH) + len(LENGTH)
        if len(self.buffer) == end + 4 + int(head[at:].split(b"\r", 1)[0]):
            self.buffer = b""
            begun, self.begun = self.begun, None
            self.sender.answered(head, begun)
            if b"connection: close" in head:
                self.transport.close()
            else:
                self.sender.idle.append(self)

    def connection_lost(self, _error):
        self.sender.connections -= 1
        if self.begun is not None:
            self.sender.lost += 1
        if self in self.sender.idle:
            self.sender.idle.remove(self)


class Sender:
    def __init__(self, port, request):
        self.port, self.request = port, request
        self.idle = []
        self.connections = self.sent = self.unsent = self.lost = self.no_retry_after = 0
        self.statuses = Counter()
        self.good = []  # (when it was begun, when it was answered), in seconds since the start

    def answered(self, head, begun):
        status = head[9:12].decode()
        self.statuses[status] += 1
        if status == "200":
            self.good.append((begun - self.started, time.perf_counter() - self.started))
        elif status == "429" and b"\r\nretry-after: " not in head:
            self.no_retry_after += 1

    async def open_and_send(self, begun):
        try:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(lambda: Connection(self), "127.0.0.1", self.port)
        except OSError:
            self.connections -= 1
            self.lost += 1
        else:
            connection.send(self.request, begun)

    async def run(self, rate, seconds):
        self.started = time.perf_counter()
        tasks = set()
        turns = round(rate * seconds)
        for turn in range(turns):
            begun = self.started + turn / rate
            if begun > time.perf_counter():
                await asyncio.sleep(max(PACE_S, begun - time.perf_counter()))
            if self.idle:
                self.idle.pop().send(self.request, begun)
            elif self.connections < CONNECTIONS:
                self.connections += 1
                tasks.add(task := asyncio.create_task(self.open_and_send(begun)))
                task.add_done_callback(tasks.discard)
            else:
                self.unsent += 1
                continue
            self.sent += 1
            if turn % 32 == 0:
                await asyncio.sleep(0)  # late: answers are taken meanwhile all the same
        self.sending_s = time.perf_counter() - self.started
        print("sent", flush=True)  # noqa: T201 - whoever started it waits for this
        until = time.perf_counter() + PATIENCE_S
        while self.statuses.total() + self.lost < self.sent and time.perf_counter() < until:
            await asyncio.sleep(0.01)

    def report(self):
        return {
            "sending_s": self.sending_s,
            "sent": self.sent,
            "not_sent": self.unsent,
            "statuses": dict(self.statuses),
            "unanswered": self.sent - self.statuses.total(),
            "429_without_retry_after": self.no_retry_after,
            "good": self.good,
        }


def main():
    port, rate, seconds, picture = sys.argv[1:]
    request = post("/predict", Path(picture).read_bytes(), {"content-type": "image/png"})
    sender = Sender(int(port), request)
    uvloop.run(sender.run(float(rate), float(seconds)))
    print(json.dumps(sender.report()))  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
