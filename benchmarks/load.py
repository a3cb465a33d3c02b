"""Load for any HTTP server, at little cost of its own: it runs on the same processor as what it measures.

Closed loop: each client has a connection and sends its next request when it has its answer. Open loop: requests arrive
at random times and wait for no answer, as those of many independent users do; a closed loop hides what a slow answer
does to the ones behind it. Plain protocols rather than an HTTP library: with 64 clients, httpx's pool let some requests
wait for seconds before they were sent, and its time was counted as the service's.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

from benchmarks.sender import ScheduledSender, is_whole, poisson_arrivals

# Answers that have not come this long after the last request was sent are counted as errors.
PATIENCE_S = 10.0
RETRY_S = 0.1  # after a refusal
MOVED = 0.1  # see Windows


@dataclass
class LoadResult:
    """The outcome of a load: the seconds that each good answer took, and the number of requests without a good one.

    `seconds` is from the start to the last answer, not to the last request: otherwise late answers would count for the
    time in which requests were sent.
    """

    times: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return an HTTP/1.1 POST request."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def multipart(pictures: Sequence[bytes], boundary: str) -> bytes:
    """Return a multipart/form-data body of that boundary, with a field named `file` for each picture."""
    part = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nContent-Type: image/png\r\n\r\n'
    )
    return b"".join(part.encode() + one + b"\r\n" for one in pictures) + f"--{boundary}--\r\n".encode()


@dataclass(frozen=True, slots=True)
class Windows:
    """What a closed loop was answered in windows of time that follow each other.

    `per_s` has each window's good answers a second, from its first one to the first one after it: answers come by the
    batch, of which a window has few. Where one is more than MOVED of a window off, it is by the clock: a halt is not
    hidden. `times` has the seconds that each of the windows' answers took. `refused`
    (429, after which a client tries again) and `errors` (other answers, or none) are those of all windows together.
    """

    per_s: list[float]
    times: list[float]
    refused: int
    errors: int

    @property
    def median_per_s(self) -> float:
        """The median window's good answers a second."""
        return statistics.median(self.per_s)


class LoadError(RuntimeError):
    """The service did not answer 200."""


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and return the answer's body. Raises LoadError unless its status is 200."""
    writer.write(request)
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in headers if line.startswith("content-length:"))
    body = await reader.readexactly(length)
    if not status.startswith("http/1.1 200 "):
        raise LoadError(f"{status}: {body[:200].decode(errors='replace')}")
    return body


class Client(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._answer: asyncio.Future[bool] | None = None
        self._buffer = b""
        self.closed = False
        self.status = 0  # of the last answer; 0 if it never came

    @classmethod
    async def connect(cls, port: int) -> Client:
        """Open a connection to 127.0.0.1. Raises OSError."""
        _, client = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport to write to."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Collect the answer until it is whole."""
        self._buffer = self._buffer + data if self._buffer else data
        header, found, body = self._buffer.partition(b"\r\n\r\n")
        if found and is_whole(header.lower(), body):
            self._buffer = b""
            self._finish(int(header[9:12]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request that waits for its answer."""
        self.closed = True
        self._finish(0)

    def _finish(self, status: int) -> None:
        if self._answer is not None and not self._answer.done():
            self.status = status
            self._answer.set_result(status == 200)

    async def exchange(self, request: bytes) -> bool:
        """Send a request and wait for its answer; return whether its status was 200."""
        self._answer = asyncio.get_running_loop().create_future()
        self.status = 0
        if self.closed:
            return False
        self._transport.write(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()


async def closed_loop(port: int, requests: Sequence[bytes], clients: int, seconds: float) -> LoadResult:
    """Send `requests` in turn from `clients` clients; those begun within `seconds` count."""
    load = LoadResult()
    turn = cycle(requests)
    begun = time.perf_counter()
    until = begun + seconds

    async def one_client() -> None:
        client = await Client.connect(port)
        while (started := time.perf_counter()) < until:
            if client.closed:
                client = await Client.connect(port)
            if await client.exchange(next(turn)):
                load.times.append(time.perf_counter() - started)
            else:
                load.errors += 1
        client.close()

    await asyncio.gather(*(one_client() for _ in range(clients)))
    load.seconds = time.perf_counter() - begun
    return load


async def closed_loop_windows(
    port: int, requests: Sequence[bytes], clients: int, *, begin: float, window_s: float, count: int
) -> Windows:
    """Send `requests` in turn from `clients` clients from now until `count` windows of `window_s` seconds are over.

    `begin` is the time.perf_counter() at which the first one begins. An answer counts in the window in which it ends,
    whenever its request was sent. A client that is refused tries again RETRY_S later.
    """
    edges = [begin + number * window_s for number in range(count + 1)]
    turn = cycle(requests)
    ends: list[float] = []
    times: list[float] = []
    refused = errors = 0

    async def one_client() -> None:
        nonlocal refused, errors
        client = await Client.connect(port)
        while (started := time.perf_counter()) < edges[-1]:
            if client.closed:
                client = await Client.connect(port)
            await client.exchange(next(turn))
            ended = time.perf_counter()
            is_in_a_window = edges[0] <= ended < edges[-1]
            if client.status == 200:
                ends.append(ended)
                times.extend([ended - started] * is_in_a_window)
            else:
                refused += is_in_a_window and client.status == 429
                errors += is_in_a_window and client.status != 429
            if client.status == 429:
                await asyncio.sleep(RETRY_S)
        client.close()

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return Windows(_rates(sorted(ends), edges, MOVED * window_s), times, refused, errors)


def _rates(ends: list[float], edges: list[float], most_s: float) -> list[float]:
    """Return the answers a second between `edges`; `ends` has when the answers ended.

    Each edge is moved to the first answer from there on, unless that is more than `most_s` seconds away.
    """
    firsts = [bisect_left(ends, edge) for edge in edges]
    next_ends = [ends[first] if first < len(ends) else float("inf") for first in firsts]
    moved = [end if end - edge <= most_s else edge for end, edge in zip(next_ends, edges, strict=True)]
    spans = zip(pairwise(firsts), pairwise(moved), strict=True)
    return [round((after - first) / (until - since), 1) for (first, after), (since, until) in spans]


def open_loop(port: int, requests: Sequence[bytes], rate: float, seconds: float, seed: int = 0) -> LoadResult:
    """Send `requests` in turn at random times, `rate` a second on average (Poisson arrivals, the same for each seed).

    An answer's time counts from when its request was due, so that a sender that was held up hides nothing.
    """
    sender = ScheduledSender(port, requests, poisson_arrivals(rate, seconds, seed))
    sender.send()
    outcomes = sender.finish(PATIENCE_S)
    good = outcomes.status == 200
    last = float(outcomes.ended[good].max(initial=seconds))
    return LoadResult(outcomes.latency[good].tolist(), int((~good).sum()), last)


def summarise(load: LoadResult) -> dict[str, float]:
    """Return good answers per second, their median and 99th percentile in milliseconds, and the errors."""
    cuts = statistics.quantiles(load.times, n=100, method="inclusive") if len(load.times) > 1 else [float("nan")] * 99
    return {
        "requests_per_s": round(len(load.times) / load.seconds, 1),
        "p50_ms": round(cuts[49] * 1e3, 2),
        "p99_ms": round(cuts[98] * 1e3, 2),
        "errors": load.errors,
    }


def main() -> None:
    """Load a URL and print the outcome as one line of JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--clients", type=int, help="closed loop: clients that each wait for their answer")
    kind.add_argument("--rate", type=float, help="open loop: requests a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0, help="of the open loop's arrivals")
    parser.add_argument("--content-type", default="image/png")
    parser.add_argument("url", help="http://127.0.0.1:PORT/PATH")
    parser.add_argument("bodies", type=Path, nargs="+", help="files to send in turn")
    arguments = parser.parse_args()
    address = urlsplit(arguments.url)
    headers = {"content-type": arguments.content_type}
    requests = [post(address.path, file.read_bytes(), headers) for file in arguments.bodies]
    port = address.port or 80
    if arguments.rate is None:
        load = uvloop.run(closed_loop(port, requests, arguments.clients, arguments.seconds))
    else:
        load = open_loop(port, requests, arguments.rate, arguments.seconds, arguments.seed)
    print(json.dumps({"requests": len(load.times), **summarise(load)}))


if __name__ == "__main__":
    main()
