"""Probes as an orchestrator sends them, each on a connection of its own, and the same of a server that does nothing."""

import asyncio
import statistics
import sys
import time
from contextlib import asynccontextmanager
from typing import NamedTuple

from benchmarks.load import exchange
from benchmarks.sender import LATE_S
from tests.conftest import ROOT

PROBE_S = 0.1


class Probe(NamedTuple):
    """Seconds: `late_s` from when it was due until its connection was begun, `took_s` from then to the whole answer.

    What is late is the prober, which waits for its turn on the processor, too.
    """

    late_s: float
    took_s: float


async def probe(port, path, due):
    """Ask on a new connection; `due` is a time.perf_counter(). Raises LoadError unless the answer is 200."""
    begun = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await exchange(reader, writer, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return Probe(begun - due, time.perf_counter() - begun)
    finally:
        writer.close()


async def probe_until(port, path, done, begin):
    """Ask every PROBE_S from `begin` on until `done`, whether or not the last probe was answered; return all of them.

    A slow answer is not to put off the next probe. `begin` is a time.perf_counter().
    """
    probes = []
    while not done.is_set():
        due = begin + len(probes) * PROBE_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        probes.append(asyncio.create_task(probe(port, path, due)))
    return await asyncio.gather(*probes)


def figures(probes, name):
    """Return the record's figures of some probes: of the answers' times from when their connections were begun."""
    took_ms = [one.took_s * 1e3 for one in probes]
    return {
        f"{name}s": len(probes),
        f"{name}_p50_ms": round(statistics.median(took_ms), 1),
        f"{name}_p99_ms": round(statistics.quantiles(took_ms, n=100, method="inclusive")[98], 1),
        f"{name}_slowest_ms": round(max(took_ms), 1),
        f"{name}_sent_late": sum(one.late_s > LATE_S for one in probes),
        f"{name}_due_slowest_ms": round(max(one.late_s + one.took_s for one in probes) * 1e3, 1),
    }


@asynccontextmanager
async def control():
    """Run tests/trivial_server.py while the block runs; the value is its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.trivial_server",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        yield int(await process.stdout.readline())
    finally:
        process.stdin.close()
        await process.wait()
