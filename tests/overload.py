"""Requests at a constant rate, whether answers come or not: `python -m tests.overload PORT RATE SECONDS PICTURE`.

In a process of its own, so that its work delays nobody else's clock; with bare sockets, because it shares the cores
with the service that it measures. It prints "sent" when it has sent the last one, and a JSON object when it has the
answers. A request whose turn finds every connection waiting is not sent, but counted.
"""

import json
import select
import socket
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks.load import post

CONNECTIONS = 2000
PATIENCE_S = 60.0
LENGTH = b"\r\ncontent-length: "
PACE_S = 0.001  # requests that are due within it are sent together: a wake-up costs as much as a request


class Connection:
    """One connection; it is idle, or waits for one answer to a request begun at `begun`."""

    __slots__ = ("begun", "buffer", "socket")

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.begun = None
        self.buffer = b""


class Sender:
    def __init__(self, port, request):
        self.port, self.request = port, request
        self.epoll = select.epoll()
        self.open = {}  # connections by their descriptors
        self.idle = []
        self.sent = self.unsent = self.lost = self.no_retry_after = 0
        self.statuses = Counter()
        self.good = []  # (when it was begun, when it was answered), in seconds since the start

    def send(self, begun):
        """Send a request on a connection that waits for no answer; on a new one if there may be more."""
        if self.idle:
            connection = self.idle.pop()
        elif len(self.open) < CONNECTIONS:
            self.sent += 1
            try:
                connection = Connection(self.port)
            except OSError:
                self.lost += 1
                return
            self.open[connection.socket.fileno()] = connection
            self.epoll.register(connection.socket, select.EPOLLIN)
            self.sent -= 1
        else:
            self.unsent += 1
            return
        self.sent += 1
        connection.begun = begun
        try:
            connection.socket.sendall(self.request)
        except OSError:
            self.close(connection)

    def close(self, connection):
        if connection.begun is not None:
            self.lost += 1
        if connection in self.idle:
            self.idle.remove(connection)
        del self.open[connection.socket.fileno()]
        connection.socket.close()

    def receive(self, seconds):
        """Wait that long for answers, and take those that have come."""
        for descriptor, _ in self.epoll.poll(seconds):
            connection = self.open[descriptor]
            try:
                data = connection.socket.recv(1 << 16)
            except OSError:
                data = b""
            if data:
                self.take(connection, data)
            else:
                self.close(connection)

    def take(self, connection, data):
        buffer = connection.buffer = connection.buffer + data
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = buffer[:end].lower()
        at = head.index(LENGTH) + len(LENGTH)
        if len(buffer) == end + 4 + int(head[at:].split(b"\r", 1)[0]):
            self.answered(head, connection.begun)
            connection.buffer, connection.begun = b"", None
            if b"connection: close" in head:
                self.close(connection)
            else:
                self.idle.append(connection)

    def answered(self, head, begun):
        status = head[9:12].decode()
        self.statuses[status] += 1
        if status == "200":
            self.good.append((begun - self.started, time.perf_counter() - self.started))
        elif status == "429" and b"\r\nretry-after: " not in head:
            self.no_retry_after += 1

    def run(self, rate, seconds):
        self.started = time.perf_counter()
        turn, turns = 0, round(rate * seconds)
        while turn < turns:
            due = min(turns, int((time.perf_counter() - self.started) * rate) + 1)
            for number in range(turn, min(due, turn + 32)):  # late: answers are taken meanwhile all the same
                self.send(self.started + number / rate)
            turn = max(turn, min(due, turn + 32))
            self.receive(PACE_S if turn == due else 0)
        self.sending_s = time.perf_counter() - self.started
        print("sent", flush=True)  # noqa: T201 - whoever started it waits for this
        until = time.perf_counter() + PATIENCE_S
        while self.statuses.total() + self.lost < self.sent and time.perf_counter() < until:
            self.receive(0.01)

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
    sender.run(float(rate), float(seconds))
    print(json.dumps(sender.report()))  # noqa: T201 - it is a command


if __name__ == "__main__":
    main()
