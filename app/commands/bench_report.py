"""What `resnet bench engine` makes of the measured times: the figures of its record, and the tables that it prints."""

from __future__ import annotations

import statistics
from typing import Any

MOST_KEPT_CALLS = 100  # of a turn with more calls the record has their mean only: a GPU's would be megabytes
MIN_CALLS_OF_P99 = 100


def ceiling_of(products: dict[str, list[float]], side: int, operations: int) -> dict[str, Any]:
    """Return how many images/s the machine could compute if all of it were as fast as one large matrix product.

    `products` has the seconds of products of two `side` x `side` matrices by dtype; an image takes `operations`.
    """
    rates = {name: 2 * side**3 / statistics.median(times) for name, times in products.items()}
    return {
        "product_side": side,
        "operations_per_s": {name: round(rate) for name, rate in rates.items()},
        "images_per_s": {name: round(rate / operations, 1) for name, rate in rates.items()},
    }


def engine_speedup(rounds: list[list[float]], engine: list[list[float]]) -> float:
    """Return the engine's rate over another contender's, by the times of their calls: the median of rounds' ratios."""
    ratios = (statistics.fmean(these) / statistics.fmean(ours) for these, ours in zip(rounds, engine, strict=True))
    return statistics.median(ratios)


def kept_times(rounds_s: dict[str, dict[int, list[list[float]]]]) -> dict[str, dict[int, list[list[float]]]]:
    """Return seconds[contender][size][round] as the record keeps it: of each call, or the mean alone of many calls."""

    def kept(times: list[float]) -> list[float]:
        return times if len(times) <= MOST_KEPT_CALLS else [round(statistics.fmean(times), 9)]

    return {
        name: {size: [kept(times) for times in turns] for size, turns in by_size.items()}
        for name, by_size in rounds_s.items()
    }


def summarise(
    by_size: dict[int, list[list[float]]], engine: dict[int, list[list[float]]]
) -> dict[str, dict[str, float]]:
    """Return the figures of a contender by batch size, from seconds[size][round], its own and the engine's.

    Images/s and the engine's rate over this one's are medians of the rounds; latencies, in ms, are of all calls.
    """
    summary = {}
    for size, rounds in by_size.items():
        calls = sorted(call for times in rounds for call in times)
        summary[str(size)] = {
            "images_per_s": round(statistics.median(size * len(times) / sum(times) for times in rounds), 1),
            "engine_over_this": round(engine_speedup(rounds, engine[size]), 3),
            "calls": len(calls),
            "p50_ms": round(statistics.median(calls) * 1e3, 2),
            "p99_ms": round(calls[min(len(calls) - 1, int(0.99 * len(calls)))] * 1e3, 2),
        }
    return summary


def show(result: dict[str, Any]) -> None:
    """Print the record's figures as tables: rates, latencies, the engine's rate over each contender's, the ceiling."""
    sizes = list(result["contenders"]["engine"])
    print(f"\nthe engine is {result['engine_is']}, its precision {result['precision']}")
    print(f"\n{'images/s at batch':<30}" + "".join(f"{size:>9}" for size in sizes))
    for name, by_size in result["contenders"].items():
        print(f"{name:<30}" + "".join(f"{by_size[size]['images_per_s']:>9.1f}" for size in sizes))
    print(f"\n{'p50 / p99 ms at batch':<30}" + "".join(f"{size:>16}" for size in sizes))
    for name, by_size in result["contenders"].items():
        cells = (f"{by_size[size]['p50_ms']:.1f} / {by_size[size]['p99_ms']:.1f}" for size in sizes)
        print(f"{name:<30}" + "".join(f"{cell:>16}" for cell in cells))
    if min(by_size[size]["calls"] for by_size in result["contenders"].values() for size in sizes) < MIN_CALLS_OF_P99:
        print(f"(the p99 of fewer than {MIN_CALLS_OF_P99} calls is the slowest of them)")
    print("\nthe engine's rate over this one's   " + "".join(f"{size:>8}" for size in sizes))
    for name, by_size in result["contenders"].items():
        print(f"{name:<35}" + "".join(f"{by_size[size]['engine_over_this']:>8.2f}" for size in sizes))
    ceiling = result["ceiling"]["images_per_s"]
    side = result["ceiling"]["product_side"]
    print(f"\nceiling, by a product of {side} x {side} matrices: ", end="")
    print(", ".join(f"{rate} images/s in {name}" for name, rate in ceiling.items()))
    best = max(ceiling.values())
    shares = (f"{rates['images_per_s'] / best:.0%} at {size}" for size, rates in result["contenders"]["engine"].items())
    print(f"the engine reaches, of the higher one, {', '.join(shares)}")
    for name, reason in result["left_out"].items():
        print(f"left out: {name}: {reason}")
