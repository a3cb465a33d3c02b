"""Open loop: requests arrive by a Poisson process at a share of the saturated rate, whether or not answers come.

Each round measures anew what its shares and ratios refer to: the saturated rate by a closed loop of 64 clients, right
before and right after each load, a lone request's latency by a closed loop of one client, and the seconds of a batch by
the engine alone. That lone latency is another generator's than the loads': so one request at a time is also sent by
their own, at random times, and `lone_by_sender_ms` has its median. The record also has the p99 at 80 % of a queue that
loses no time, by simulation: benchmarks/queueing.py; its batches do not overlap. All of it is on the CPU, also where
there is a GPU.

Rounds are many and short: where the host holds the machine up for 60 ms, that is the p99 of the whole window. A closed
loop does not count what is under way when it ends, so the saturated rate is low by half a batch in CLOSED_S.

python -m benchmarks.open_loop
"""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.engine import load_engine
from app.settings import Settings
from benchmarks import closed_loop
from benchmarks.load import post
from benchmarks.pace import PAUSE_S, engine_rates, examples
from benchmarks.queueing import batch_seconds, latency_s
from benchmarks.records import write
from benchmarks.sender import Outcomes, ScheduledSender, poisson_arrivals
from tests.process import service_process

LOADS = (0.5, 0.8, 0.95, 1.5)
ROUNDS = 11
CLOSED_S = 4  # of 64 clients, five times a round
SINGLE_S = 2
LONE_PER_S = 10.0  # so few that hardly one meets another
LONE_S = 3.0
SETTLE_S = 3.0
MEASURED_S = 6.0
ENGINE_SIZES = (1, 4, 8, 16, 32)
ENGINE_S = 0.5  # for each of them in a round
COUNTED = ("failed", "sent_late")  # the record has the worst round of these, not the median


def evaluate(outcomes: Outcomes, begin: float, end: float, deadline_s: float) -> dict[str, float | None]:
    """Return rates, latencies and shares of the requests that were due from `begin` to `end`.

    `goodput_per_s` counts the answers within the deadline that came from `begin` to `end`, whenever they were due.
    `kept_deadline_share` is of the requests that were not refused; one that failed or was lost has not kept it.
    """
    latency, status = outcomes.latency, outcomes.status
    due = (begin <= outcomes.due) & (outcomes.due < end)
    accepted = latency[due & (status == 200)]
    refused = latency[due & (status == 429)]
    admitted, kept = due & (status != 429), due & (status == 200) & (latency <= deadline_s)
    ended = (begin <= outcomes.ended) & (outcomes.ended < end)
    good = (status == 200) & (latency <= deadline_s) & ended
    count = int(due.sum())
    return {
        "offered_per_s": round(count / (end - begin), 1),
        "goodput_per_s": round(int(good.sum()) / (end - begin), 1),
        "p50_ms": _percentile_ms(accepted, 50),
        "p99_ms": _percentile_ms(accepted, 99),
        "refused_share": round(len(refused) / count, 4),
        "refusal_p99_ms": _percentile_ms(refused, 99),
        "kept_deadline_share": round(float(kept.sum() / admitted.sum()), 4) if admitted.any() else None,
        "failed": count - len(accepted) - len(refused),
        "sent_late": int((due & outcomes.late).sum()),
    }


def _percentile_ms(latency: NDArray[np.float64], percent: int) -> float | None:
    return round(float(np.percentile(latency, percent)) * 1e3, 2) if len(latency) else None


def median_of(rounds: list[dict[str, float | None]]) -> dict[str, float | None]:
    """Return the median over the rounds of each figure but those of COUNTED; rounds without the figure do not count."""
    found = {key: [one[key] for one in rounds] for key in rounds[0] if key not in COUNTED}
    known = {key: [value for value in values if value is not None] for key, values in found.items()}
    return {key: statistics.median(values) if values else None for key, values in known.items()}


def worst_of(rounds: list[dict[str, float | None]]) -> dict[str, float]:
    """Return the highest count of a round for each of COUNTED."""
    return {key: max(one[key] or 0 for one in rounds) for key in COUNTED}


def send_at_random(
    port: int, requests: list[bytes], rate: float, seed: int, *, begin: float, seconds: float, deadline_s: float
) -> dict[str, float | None]:
    """Send `rate` requests a second for `begin + seconds` seconds; return the figures of those from `begin` on."""
    end = begin + seconds
    sender = ScheduledSender(port, requests, poisson_arrivals(rate, end, seed))
    sender.send()
    return evaluate(sender.finish(), begin, end, deadline_s)


def one_round(
    wrk: list[str] | None, port: int, requests: list[bytes], settings: Settings, seed: int
) -> dict[str, dict[str, float | None]]:
    """Measure one request at a time, by both generators, and each load between two measurements of the saturated rate.

    A load is a share of the rate right before it.
    """
    url = f"http://127.0.0.1:{port}/predict"
    deadline_s = settings.timeout_ms / 1000
    results: dict[str, dict[str, float | None]] = {"single": closed_loop.run(wrk, url, 1, SINGLE_S)}
    results["lone by sender"] = send_at_random(
        port, requests, LONE_PER_S, seed, begin=0.0, seconds=LONE_S, deadline_s=deadline_s
    )
    results["saturated"] = before = closed_loop.run(wrk, url, 64, CLOSED_S)
    for load in LOADS:
        saturated_per_s = before["requests_per_s"]
        rate = load * saturated_per_s
        # Beyond saturation the queue has to fill first.
        full = min(settings.max_queue_images, settings.max_queue_s * saturated_per_s)
        fill_s = 1.2 * full / (rate - saturated_per_s) if load > 1 else 0.0
        found = send_at_random(
            port, requests, rate, seed, begin=SETTLE_S + fill_s, seconds=MEASURED_S, deadline_s=deadline_s
        )
        before = closed_loop.run(wrk, url, 64, CLOSED_S)
        found |= {"saturated_before_per_s": saturated_per_s, "saturated_after_per_s": before["requests_per_s"]}
        results[f"{load:.0%}"] = found
        print(seed, f"{load:.0%}", found, flush=True)
    results["saturated again"] = before
    return results


def main() -> None:
    """Run all rounds against one process."""
    settings = Settings(device="cpu")
    wrk = closed_loop.find_or_download_wrk()
    requests = [post("/predict", path.read_bytes(), {"content-type": "image/png"}) for path in closed_loop.PICTURES]
    engine, images = load_engine(settings), examples(max(ENGINE_SIZES))
    gc.collect()
    gc.freeze()  # the sender is in this process, and to look through all that the engine needs takes 0.1 s
    rounds, engine_rounds = [], []
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(Path(folder) / "serve.log", device="cpu", **engine.tuning) as service,
    ):
        service.wait_ready()
        for seed in range(ROUNDS):
            engine_rounds.append(engine_rates(engine, images, ENGINE_SIZES, ENGINE_S, overlapping=False))
            time.sleep(PAUSE_S)
            rounds.append(one_round(wrk, service.port, requests, settings, seed))
    worst = {name: worst_of([one[name] for one in rounds]) for name in (f"{load:.0%}" for load in LOADS)}
    medians = {name: median_of([one[name] for one in rounds]) for name in rounds[0]}
    p99_at_80, to_lone_by_sender = (
        statistics.median(_ratio(one["80%"]["p99_ms"], one[alone]["p50_ms"]) for one in rounds)
        for alone in ("single", "lone by sender")
    )
    engine_median = {size: size / statistics.median(one[size] for one in engine_rounds) for size in ENGINE_SIZES}
    batch_s = batch_seconds(engine_median)
    saturated_per_s = medians["80%"]["saturated_before_per_s"] or 0.0
    queue_alone_s = latency_s(0.8 * saturated_per_s, batch_s, max(ENGINE_SIZES), 99)
    # A machine's pace changes: what was saturated before and after, on average.
    at_150 = statistics.median(_ratio(one["150%"]["goodput_per_s"], _saturated_per_s(one["150%"])) for one in rounds)
    write(
        "open_loop.json",
        {
            "command": "python -m benchmarks.open_loop",
            "tuning": engine.tuning,
            "closed_loop": closed_loop.name(wrk),
            "deadline_ms": settings.timeout_ms,
            "max_queue_images": settings.max_queue_images,
            "max_queue_s": settings.max_queue_s,
            "p99_at_80_percent_over_single_p50": round(p99_at_80, 2),
            "lone_by_sender_ms": medians["lone by sender"]["p50_ms"],
            "p99_at_80_percent_over_lone_by_sender": round(to_lone_by_sender, 2),
            "queue_that_loses_no_time_p99_over_single_p50": round(
                _ratio(queue_alone_s * 1e3, medians["single"]["p50_ms"]), 2
            ),
            "goodput_at_150_percent_over_saturated": round(at_150, 3),
            "engine_batch_ms_median": {size: round(seconds * 1e3, 3) for size, seconds in engine_median.items()},
            "median": medians,
            "worst": worst,
            "rounds": rounds,
        },
    )


def _saturated_per_s(load: dict[str, float | None]) -> float:
    """Return the mean of the saturated rates before and after a load."""
    return statistics.mean(load[name] or 0.0 for name in ("saturated_before_per_s", "saturated_after_per_s"))


def _ratio(one: float | None, other: float | None) -> float:
    return one / other if one is not None and other else float("nan")


if __name__ == "__main__":
    main()
