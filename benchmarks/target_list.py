"""The targets of this service, and where the files under benchmarks/ have the figures that it reached."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from app.commands.bench_report import engine_speedup
from benchmarks.judging import CUDA, Target
from benchmarks.peers.contenders import is_ours

ENGINE, SERVICE, INT8, OPEN_LOOP = "engine_cpu.json", "service_cpu.json", "service_cpu_int8.json", "open_loop.json"
LARGE, MEMORY = "large_requests.json", "memory.json"
CUDA_BFLOAT16 = "CUDA graphs bfloat16"  # the contender of `resnet bench engine`
NULL, EAGER = "peers_null.json", "peers_eager.json"
OVERLOAD, SLOW, FUZZ = "reliability/overload.json", "reliability/slow_clients.json", "reliability/fuzz.json"
FUZZED = ("pictures", "bodies", "schemathesis", "schemathesis_with_key")
ON_A_GPU = "The engine on a GPU"
BOMBS, SOAK = "reliability/bombs.json", "reliability/soak.json"


def _rate(one: dict[str, Any], name: str, size: str) -> float:
    rate: float = one["contenders"][name][size]["images_per_s"]
    return rate


def _of_the_fastest(size: str) -> Callable[[dict[str, Any]], float | None]:
    """The service's engine over the fastest other way to compute in floats, the median of the rounds' own ratios.

    Every contender counts, also the one that computes as the engine does, without what surrounds it. None if the engine
    was measured alone.
    """

    def figure(one: dict[str, Any]) -> float | None:
        rounds_s = one["rounds_s"]
        others = [rounds_s[name][size] for name in rounds_s if "int8" not in name and name != "engine"]
        return min((engine_speedup(rounds, rounds_s["engine"][size]) for rounds in others), default=None)

    return figure


def _of_the_ceiling(one: dict[str, Any]) -> float:
    return _rate(one, "engine", "32") / float(max(one["ceiling"]["images_per_s"].values()))


def _in_bfloat16(one: dict[str, Any]) -> dict[str, Any]:
    """Return what the engine reached on a GPU in bfloat16, for which the targets are; "auto" may have left it."""
    name = "engine" if one["engine_is"] == CUDA_BFLOAT16 else CUDA_BFLOAT16
    found: dict[str, Any] = one["contenders"][name]
    return found


def _of_the_engine(one: dict[str, Any]) -> float:
    return float(one["of_the_engine_64_clients_median"])


def _beside(name: str, load: str, what: str = "requests_per_s") -> Callable[[dict[str, Any]], float]:
    """Ours over another contender's, the median of the rounds' own ratios."""
    return lambda one: float(one["medians"][name][load][f"ours_to_theirs_{what}"])


def _beside_the_best(one: dict[str, Any]) -> float:
    return min(_beside(name, "clients_64")(one) for name in one["medians"] if not is_ours(name))


def _kept_in_the_worst_round(one: dict[str, Any]) -> float | None:
    shares = [turn["150%"]["kept_deadline_share"] for turn in one["rounds"]]
    return min((share for share in shares if share is not None), default=None)


def _most_faults(one: dict[str, Any]) -> float:
    return float(max(one[name].get("faults", one[name].get("unique_failures")) for name in FUZZED))


def _slowest_fuzzed(one: dict[str, Any]) -> float:
    return float(max(one[name]["slowest_s"] for name in FUZZED))


def _most_growth(one: dict[str, Any]) -> float:
    return float(max(abs(share) for life in one["processes"] for share in life["growth"].values()))


TARGETS: dict[str, list[Target]] = {
    "The engine": [
        *(
            Target(f"its rate at batch {n}, of the fastest other way's", ENGINE, _of_the_fastest(n), 0.95, form=".0%")
            for n in ("1", "8", "32")
        ),
        Target("its rate at batch 32, of a large matrix product's", ENGINE, _of_the_ceiling, 0.7, form=".0%"),
        Target(
            "int8 at batch 32, of its rate in floats",
            ENGINE,
            lambda one: engine_speedup(one["rounds_s"]["engine"]["32"], one["rounds_s"]["OpenVINO int8"]["32"]),
            1.5,
        ),
        Target(
            "top-1 lost by int8, points",
            "precisions_cpu.json",
            lambda one: 100 * (one["test_set"]["float32"]["top1"] - one["test_set"]["int8"]["top1"]),
            at_most=0.1,
        ),
        Target(
            "calibration error added by int8, points",
            "precisions_cpu.json",
            lambda one: 100 * (one["test_set"]["int8"]["ece"] - one["test_set"]["float32"]["ece"]),
            at_most=0.1,
        ),
    ],
    ON_A_GPU: [
        Target(
            "images/s on one H100, best batch",
            CUDA,
            lambda one: max(found["images_per_s"] for found in _in_bfloat16(one).values()),
            150_000,
            form=",.0f",
        ),
        Target("ms for a batch of one there", CUDA, lambda one: _in_bfloat16(one)["1"]["p50_ms"], at_most=0.7),
    ],
    "The service": [
        Target("64 clients, of the engine's rate", SERVICE, _of_the_engine, 0.9, form=".1%"),
        Target("the same in int8", INT8, _of_the_engine, 0.9, form=".1%"),
        Target(
            "one client: ms added to the engine's batch of one, p50",
            SERVICE,
            lambda one: one["added_ms_1_client_median"],
            at_most=2,
        ),
        Target(
            "one client: p99 over p50",
            SERVICE,
            lambda one: one["clients_median"]["1"]["p99_ms"] / one["clients_median"]["1"]["p50_ms"],
            at_most=2,
        ),
        Target(
            "rate over the best peer's, 64 clients, the peers with eager PyTorch",
            EAGER,
            _beside_the_best,
            1.5,
            form=".3f",
        ),
        Target("own cost: rate over Mosec's, 64 clients", NULL, _beside("mosec", "clients_64"), 1.3),
        Target("own cost: rate over LitServe's, 64 clients", NULL, _beside("litserve", "clients_64"), 5),
        Target("own cost: rate over plain FastAPI's, one client", NULL, _beside("fastapi", "clients_1"), 1),
        Target(
            "own cost: processor time a request over Mosec's, 64 clients",
            NULL,
            _beside("mosec", "clients_64", "cpu_ms_per_request"),
            at_most=1,
        ),
        Target(
            "random arrivals at 80% of the saturated rate: p99 over a lone request's p50",
            OPEN_LOOP,
            lambda one: one["p99_at_80_percent_over_single_p50"],
            at_most=4,
            form=".1f",
        ),
        Target(
            "at 150%: goodput, of the saturated rate",
            OPEN_LOOP,
            lambda one: one["goodput_at_150_percent_over_saturated"],
            0.9,
        ),
        Target(
            "at 150%: p99 of refusals, ms",
            OPEN_LOOP,
            lambda one: one["median"]["150%"]["refusal_p99_ms"],
            at_most=20,
            form=".1f",
        ),
        Target(
            "at 150%: share of the requests not refused that were answered within their deadline, in the worst round",
            OPEN_LOOP,
            _kept_in_the_worst_round,
            1,
        ),
        Target(
            "at 150%: failed or lost, in the worst round",
            OPEN_LOOP,
            lambda one: max(turn["150%"]["failed"] for turn in one["rounds"]),
            at_most=0,
            form=".0f",
        ),
        *(
            Target(
                f"256 images in a request, {form}: of the engine's rate",
                LARGE,
                lambda one, form=form: one["of_the_engine_median"][form],  # type: ignore[misc]
                0.95,
                form=".1%",
            )
            for form in ("multipart", "json", "npy")
        ),
        Target(
            "resident memory, 100,000 requests over 10,000",
            MEMORY,
            lambda one: one["last_over_first_step"],
            at_most=1.03,
            form=".3f",
        ),
        Target(
            "resident MB above torch and the weights",
            MEMORY,
            lambda one: one["above_the_interpreter_mb"],
            at_most=150,
            form=".0f",
        ),
    ],
    "It keeps working": [
        Target(
            "ten times the sustainable load: goodput, of the rate before",
            OVERLOAD,
            lambda one: one["goodput_share"],
            0.9,
            form=".1%",
        ),
        Target(
            "answers other than 200 and 429, or none",
            OVERLOAD,
            lambda one: (
                one["unanswered"] + sum(one["statuses"].values()) - one["statuses"]["200"] - one["statuses"]["429"]
            ),
            at_most=0,
            form=".0f",
        ),
        Target(
            "answers with 429 that do not say when to come back",
            OVERLOAD,
            lambda one: one["429_without_retry_after"],
            at_most=0,
            form=".0f",
        ),
        Target("slowest accepted request, s", OVERLOAD, lambda one: one["accepted_slowest_s"], at_most=10, form=".1f"),
        Target("slowest probe, ms", OVERLOAD, lambda one: one["probe_slowest_ms"], at_most=50, form=".0f"),
        Target(
            "rate from 2 s after the end on, of the rate before", OVERLOAD, lambda one: one["after_2_s_share"], 0.95
        ),
        Target("p99 beside 500 slow clients over p99 without", SLOW, lambda one: one["p99_ratio"], at_most=2),
        Target("faults found by fuzzing", FUZZ, _most_faults, at_most=0, form=".0f"),
        Target("slowest answer to what fuzzing sent, s", FUZZ, _slowest_fuzzed, at_most=2),
        Target("slowest bomb refused, s", BOMBS, lambda one: one["slowest_s"], at_most=1),
        Target("most memory for a bomb, MB", BOMBS, lambda one: one["most_extra_mb"], at_most=50, form=".0f"),
        Target("half an hour of mixed traffic: wrong or lost answers", SOAK, lambda one: one["problems"], at_most=0),
        Target("its growth of memory, files, threads, tasks", SOAK, _most_growth, at_most=0.03, form=".1%"),
    ],
}
