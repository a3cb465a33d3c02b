"""Open loop: requests at given times, whether or not answers come.

Bare sockets and one thread, because the sender shares the cores with the service that it measures: asyncio's streams
took twice its time for a request. A request's latency runs from the moment it was due, not from when it was
sent, so that a service which makes its clients wait cannot hide it (no "coordinated omission").
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.http.connection_limits import raise_file_limit

MAX_CONNECTIONS = 3000
PATIENCE_S = 60.0  # for the last answers

# How often answers are looked at where more requests are due than one in that time; those that fall due meanwhile are
# sent together. To wake for each would take twice the processor time, in an overload three times. Latencies come out
# longer by this twice at most: once before the request is sent, once before its answer is seen.
PACE_S = 0.001
CLOSED_AT_ONCE = 3  # of thousands, in a second or so
LATE_S = 0.01  # what counts as sent late
AT_ONCE = 32  # requests sent before answers are looked at again: a late one must not make all others late


@dataclass(frozen=True, slots=True)
class Outcomes:
    """The outcomes of the requests, in the order in which they were due; all arrays have shape (N,).

    `due`, `sent` and `ended` are float64, in seconds from the start; NaN if a request was not sent or has not ended.
    `status` is int16: 0 for a request without an answer.
    """

    due: NDArray[np.float64]
    sent: NDArray[np.float64]
    ended: NDArray[np.float64]
    status: NDArray[np.int16]
    without_retry_after: int  # answers with 429 that have no Retry-After

    @property
    def latency(self) -> NDArray[np.float64]:
        """Seconds from when each request was due to its whole answer, float64 (N,)."""
        return self.ended - self.due

    @property
    def late(self) -> NDArray[np.bool_]:
        """Whether each request was sent more than LATE_S after it was due, bool (N,)."""
        return self.sent - self.due > LATE_S


def poisson_arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start: a Poisson process of `rate` a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    due = gaps.cumsum()
    return due[due < seconds]


def even_arrivals(rate: float, seconds: float) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start, at a constant rate."""
    return np.arange(round(rate * seconds)) / rate


def is_whole(header: bytes, body: bytes) -> bool:
    """Return whether an answer's body is complete, of a known length or in chunks; `header` is in lower case."""
    _, found, rest = header.partition(b"\r\ncontent-length:")
    if found:
        return len(body) >= int(rest.partition(b"\r\n")[0])
    return body.endswith(b"0\r\n\r\n")


def is_answer(data: bytes) -> bool:
    """Return whether `data` is a whole answer."""
    header, found, body = data.partition(b"\r\n\r\n")
    return bool(found) and is_whole(header.lower() + b"\r\n", body)


class _Connection:
    """A connection that waits for the answer to request `number`, or for none, which is -1."""

    __slots__ = ("buffer", "number", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.connect(("127.0.0.1", port))
        self.buffer = b""
        self.number = -1


class ScheduledSender:
    """Sends `requests` in turn at `arrivals`, seconds from the start, to a port of this machine.

    A request takes the connection that has been idle for the shortest time, else a new one, else, with `most`
    connections open, the next that becomes idle. Up to a request in PACE_S on average, each is sent when it is due and
    each answer is seen when it comes; beyond, both are looked after every PACE_S.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[bytes],
        arrivals: NDArray[np.float64],
        *,
        most: int = MAX_CONNECTIONS,
    ) -> None:
        self._port = port
        self._requests = requests
        self._arrivals = arrivals
        self._due: list[float] = arrivals.tolist()
        self._most = raise_file_limit(most)
        self._sent = [float("nan")] * len(arrivals)
        self._ended = [float("nan")] * len(arrivals)
        self._status = [0] * len(arrivals)
        self._without_retry_after = 0
        self._settled = 0  # requests that have their answer, or will have none
        self._open: dict[int, _Connection] = {}
        self._idle: list[_Connection] = []
        self._opened = 0
        self._all_sent = False
        self._prompt = bool(self._due) and len(self._due) * PACE_S <= self._due[-1]
        self._epoll = select.epoll()
        self._start = 0.0

    @property
    def opened(self) -> int:
        """Connections opened while sending: those that `open_idle` opened do not count."""
        return self._opened

    def open_idle(self, count: int, seconds: float, request: bytes) -> int:
        """Open `count` connections evenly over `seconds`, at most as many as may be open; return how many.

        Each has the answer to a request of its own before the next one is opened, so that it is a kept-alive connection
        rather than one whose first header is awaited. Raises OSError if one is not to be had.
        """
        begun, count = time.perf_counter(), min(count, self._most)
        for number in range(count):
            time.sleep(max(0.0, begun + number * seconds / count - time.perf_counter()))
            connection = _Connection(self._port)
            connection.socket.settimeout(PATIENCE_S)
            connection.socket.sendall(request)
            while not is_answer(connection.buffer):
                data = connection.socket.recv(1 << 16)
                if not data:
                    raise ConnectionError(f"connection {number} was closed without an answer")
                connection.buffer += data
            connection.buffer = b""
            connection.socket.settimeout(None)
            self._add(connection)
            self._idle.append(connection)
        return count

    def send(self) -> float:
        """Send every request when it is due, and return the seconds it took to send the last one."""
        self._start = time.perf_counter()
        due, count, turn = self._due, len(self._due), 0
        while turn < count:
            until = min(count, turn + AT_ONCE)
            while turn < until and due[turn] <= self._now() and self._send(turn):
                turn += 1
            if turn < until:
                left_s = due[turn] - self._now()
                if left_s > 0 or not self._may_send():
                    self._rest(left_s if left_s > 0 else PACE_S)
            self._receive()
        return self._now()

    def finish(self, patience_s: float = PATIENCE_S) -> Outcomes:
        """Wait as `wait` does, and return the outcomes of all requests."""
        self.wait(patience_s)
        return self.outcomes()

    def wait(self, patience_s: float = PATIENCE_S) -> None:
        """Wait for answers that have not come; close each connection once it has none to wait for.

        Idle ones a few at a time: to hear of thousands at once would hold the server up, which nobody has asked for.
        """
        until = self._now() + patience_s
        self._all_sent = True
        while self._idle:
            for connection in self._idle[-CLOSED_AT_ONCE:]:
                self._close(connection)
            if self._idle:
                time.sleep(PACE_S)
                self._receive()  # which takes out those that the server has closed
        while self._settled < len(self._due) and (left_s := until - self._now()) > 0:
            select.select([self._epoll], [], [], left_s)
            self._receive()
        for connection in self._open.values():
            connection.socket.close()
        self._epoll.close()

    def outcomes(self) -> Outcomes:
        """Return the outcomes of all requests, after `wait`."""
        return Outcomes(
            self._arrivals,
            np.array(self._sent),
            np.array(self._ended),
            np.array(self._status, np.int16),
            self._without_retry_after,
        )

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _may_send(self) -> bool:
        """Return whether a connection is idle, or another one may be opened."""
        return bool(self._idle) or len(self._open) < self._most

    def _send(self, number: int) -> bool:
        """Send a request; return False if every connection is waiting for an answer."""
        if self._idle:
            connection = self._idle.pop()
        elif len(self._open) < self._most:
            try:
                connection = _Connection(self._port)
            except OSError:
                self._sent[number] = self._now()
                self._settled += 1
                return True
            self._opened += 1
            self._add(connection)
        else:
            return False
        connection.number = number
        self._sent[number] = self._now()
        try:
            connection.socket.sendall(self._requests[number % len(self._requests)])
        except OSError:
            self._close(connection)
        return True

    def _add(self, connection: _Connection) -> None:
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLIN)

    def _rest(self, at_most_s: float) -> None:
        """Wait for an answer for some seconds at most, or, where many come, for PACE_S whether or not one does."""
        if self._prompt:
            select.select([self._epoll], [], [], at_most_s)  # epoll's own time limit is in whole milliseconds
        else:
            time.sleep(PACE_S)

    def _receive(self) -> None:
        """Take the answers that have come."""
        for descriptor, _ in self._epoll.poll(0):
            connection = self._open[descriptor]
            try:
                data = connection.socket.recv(1 << 16)
            except OSError:
                data = b""
            if data:
                self._take(connection, data)
            else:
                self._close(connection)

    def _take(self, connection: _Connection, data: bytes) -> None:
        buffer = connection.buffer = connection.buffer + data if connection.buffer else data
        header, found, body = buffer.partition(b"\r\n\r\n")
        header = header.lower() + b"\r\n"
        if not found or not is_whole(header, body):
            return
        number = connection.number
        status = int(header[9:12])
        self._ended[number], self._status[number] = self._now(), status
        self._settled += 1
        if status == 429 and b"\r\nretry-after: " not in header:
            self._without_retry_after += 1
        connection.number, connection.buffer = -1, b""
        if self._all_sent or b"\r\nconnection: close\r\n" in header:
            self._close(connection)
        else:
            self._idle.append(connection)

    def _close(self, connection: _Connection) -> None:
        if connection.number >= 0:
            self._settled += 1
        elif connection in self._idle:
            self._idle.remove(connection)
        del self._open[connection.socket.fileno()]
        connection.socket.close()
