"""A closed-loop load generator: each client has a connection of its own and sends when it has its answer.

Plain streams rather than an HTTP library: with 64 clients, httpx's pool let some requests wait for seconds before they
were sent, and its time was counted as the service's.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Mapping


class LoadError(RuntimeError):
    """The service did not answer 200."""


def post(path: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return an HTTP/1.1 POST request."""
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"content-length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bytes:
    """Send a request and return the answer's body. Raises LoadError for a status other than 200."""
    writer.write(request)
    status, *headers = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
    length = next(int(line.partition(":")[2]) for line in headers if line.startswith("content-length:"))
    body = await reader.readexactly(length)
    if not status.startswith("http/1.1 200 "):
        raise LoadError(f"{status}: {body[:200].decode(errors='replace')}")
    return body


async def closed_loop(port: int, request: bytes, clients: int, seconds: float) -> list[float]:
    """Return the seconds from sending to the whole answer, of every request that was begun within `seconds`."""
    times: list[float] = []
    until = time.perf_counter() + seconds

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            while (started := time.perf_counter()) < until:
                await exchange(reader, writer, request)
                times.append(time.perf_counter() - started)
        finally:
            writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return times


def summarise(times: list[float], seconds: float) -> dict[str, float]:
    """Return requests per second, and the median and the 99th percentile in milliseconds."""
    cuts = statistics.quantiles(times, n=100)
    return {
        "requests_per_s": round(len(times) / seconds, 1),
        "p50_ms": round(cuts[49] * 1e3, 2),
        "p99_ms": round(cuts[98] * 1e3, 2),
    }
