"""Open loop: requests arrive by a Poisson process at a share of the saturated rate, whether or not answers come.

A request's latency runs from the moment it was due, not from when it was sent, so that a service which makes its
clients wait cannot hide it (no "coordinated omission"). Closed-loop rounds of 64 clients and of one give the
saturated rate and the single request's latency that the shares and ratios refer to, anew in each round. Beside the p99
at 80 % stands what random arrivals alone make of it: benchmarks/queueing.py.

python -m benchmarks.open_loop
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import uvloop
from numpy.typing import NDArray

from app.settings import Settings
from benchmarks.load import closed_loop, post, summarise
from benchmarks.machine import FOLDER, RECORDS, read, write
from benchmarks.queueing import batch_seconds, latency_s
from tests.process import service_process

LOADS = (0.5, 0.8, 0.95, 1.5)
ROUNDS = 3
CLOSED_S = 10.0
SETTLE_S = 5.0
MEASURED_S = 20.0
MAX_CONNECTIONS = 3000
LATE_S = 0.01
MOST_IN_A_BATCH = 32


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request: when it was due, sent and answered, in seconds from the start; status 0 if the connection broke."""

    due: float
    sent: float
    ended: float
    status: int

    @property
    def latency(self) -> float:
        """Seconds from when it was due to its whole answer."""
        return self.ended - self.due


class Connections:
    """Keep-alive connections to a port: an idle one, else a new one, else the next of `most` that becomes idle."""

    def __init__(self, port: int, most: int) -> None:
        self._port = port
        self._places = asyncio.Semaphore(most)
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def ask(self, request: bytes) -> tuple[float, int]:
        """Send a request and wait for the whole answer; return when it was sent (perf_counter) and the status."""
        async with self._places:
            sent = time.perf_counter()
            try:
                reader, writer = (
                    self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
                )
            except OSError:
                return sent, 0
            try:
                sent = time.perf_counter()
                writer.write(request)
                status, keep = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError):
                status, keep = 0, False
            if keep:
                self._idle.append((reader, writer))
            else:
                writer.close()
            return sent, status

    def close(self) -> None:
        """Close the idle ones."""
        for _, writer in self._idle:
            writer.close()


async def _answer(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Read an answer; return its status and whether the connection stays open."""
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(head.partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0]))
    return int(head.split(b" ", 2)[1]), b"\r\nconnection: close\r\n" not in head


def poisson_arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return when requests are due, in seconds from the start: a Poisson process of `rate` a second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(2 * rate * seconds) + 100)
    due = gaps.cumsum()
    return due[due < seconds]


async def open_loop(port: int, request: bytes, arrivals: NDArray[np.float64], most: int) -> list[Exchange]:
    """Send a request at each arrival, without waiting for the answers to those before it."""
    connections = Connections(port, most)
    exchanges: list[Exchange] = []
    start = time.perf_counter()

    async def one(due: float) -> None:
        sent, status = await connections.ask(request)
        exchanges.append(Exchange(due, sent - start, time.perf_counter() - start, status))

    async with asyncio.TaskGroup() as group:
        for due in arrivals.tolist():
            await asyncio.sleep(max(0.0, start + due - time.perf_counter()))
            group.create_task(one(due))
    connections.close()
    return exchanges


def evaluate(exchanges: list[Exchange], begin: float, end: float, deadline_s: float) -> dict[str, float | None]:
    """Return rates, latencies and shares of the requests that were due from `begin` to `end`.

    `goodput_per_s` counts the answers that came within the deadline, from `begin` to `end`, whenever they were due.
    """
    due = [one for one in exchanges if begin <= one.due < end]
    accepted = [one for one in due if one.status == 200]
    refused = [one for one in due if one.status == 429]
    good = [one for one in exchanges if one.status == 200 and one.latency <= deadline_s and begin <= one.ended < end]
    return {
        "offered_per_s": round(len(due) / (end - begin), 1),
        "goodput_per_s": round(len(good) / (end - begin), 1),
        "p50_ms": _percentile_ms(accepted, 50),
        "p99_ms": _percentile_ms(accepted, 99),
        "refused_share": round(len(refused) / len(due), 4),
        "refusal_p99_ms": _percentile_ms(refused, 99),
        "accepted_within_deadline_share": (
            round(sum(one.latency <= deadline_s for one in accepted) / len(accepted), 4) if accepted else None
        ),
        "failed": len(due) - len(accepted) - len(refused),
        "sent_late": sum(one.sent - one.due > LATE_S for one in due),
    }


def _percentile_ms(exchanges: list[Exchange], percent: int) -> float | None:
    return round(float(np.percentile([one.latency for one in exchanges], percent)) * 1e3, 2) if exchanges else None


def median_of(rounds: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the median of each figure over the rounds that have it."""
    found = {key: [one[key] for one in rounds if one[key] is not None] for key in rounds[0]}
    return {key: statistics.median(values) if values else None for key, values in found.items()}


def _closed(port: int, request: bytes, clients: int) -> dict[str, float]:
    """Measure a closed loop; its rate is over the time to the last answer, not only that in which requests begin."""
    started = time.perf_counter()
    load = uvloop.run(closed_loop(port, [request], clients, CLOSED_S))
    return summarise(load, time.perf_counter() - started)


def one_round(port: int, request: bytes, settings: Settings, seed: int) -> dict[str, dict[str, float | None]]:
    """Measure the saturated rate, one client, and each load."""
    saturated, single = (_closed(port, request, clients) for clients in (64, 1))
    results: dict[str, dict[str, float | None]] = {"saturated": {**saturated}, "single": {**single}}
    for load in LOADS:
        rate = load * saturated["requests_per_s"]
        # Beyond saturation the queue has to fill first.
        full = min(settings.max_queue_images, settings.max_queue_s * saturated["requests_per_s"])
        fill_s = 1.2 * full / (rate - saturated["requests_per_s"]) if load > 1 else 0.0
        begin = SETTLE_S + fill_s
        end = begin + MEASURED_S
        exchanges = uvloop.run(open_loop(port, request, poisson_arrivals(rate, end, seed), MAX_CONNECTIONS))
        results[f"{load:.0%}"] = evaluate(exchanges, begin, end, settings.timeout_ms / 1000)
        print(seed, f"{load:.0%}", results[f"{load:.0%}"], flush=True)
    return results


def main() -> None:
    """Run all rounds against one process."""
    settings = Settings()
    request = post("/predict", (FOLDER.parent / "examples" / "cat.png").read_bytes(), {"content-type": "image/png"})
    with tempfile.TemporaryDirectory() as folder, service_process(Path(folder) / "serve.log") as service:
        service.wait_ready()
        rounds = [one_round(service.port, request, settings, seed) for seed in range(ROUNDS)]
    medians = {name: median_of([one[name] for one in rounds]) for name in rounds[0]}
    p99_at_80 = statistics.median(_ratio(one["80%"]["p99_ms"], one["single"]["p50_ms"]) for one in rounds)
    batch_s = batch_seconds(read("engine_cpu.json", RECORDS))  # of the same machine: `make bench` comes first
    queue_alone_s = latency_s(0.8 * (medians["saturated"]["requests_per_s"] or 0.0), batch_s, MOST_IN_A_BATCH, 99)
    at_150 = statistics.median(
        _ratio(one["150%"]["goodput_per_s"], one["saturated"]["requests_per_s"]) for one in rounds
    )
    write(
        "open_loop.json",
        {
            "command": "python -m benchmarks.open_loop",
            "deadline_ms": settings.timeout_ms,
            "max_queue_images": settings.max_queue_images,
            "max_queue_s": settings.max_queue_s,
            "p99_at_80_percent_over_single_p50": round(p99_at_80, 2),
            "that_of_a_queue_that_loses_no_time": round(queue_alone_s / batch_s(1), 2),
            "goodput_at_150_percent_over_saturated": round(at_150, 3),
            "median": medians,
            "rounds": rounds,
        },
    )


def _ratio(one: float | None, other: float | None) -> float:
    return one / other if one is not None and other else float("nan")


if __name__ == "__main__":
    main()
