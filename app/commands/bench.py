"""`resnet bench engine`: the service's engine beside every other way to compute the same, on this machine."""

from __future__ import annotations

import argparse
import json
import random
import shlex
import statistics
import time
from typing import TYPE_CHECKING, Any

from app.commands.data_flags import check_writable, named_path
from app.commands.numbers import whole
from app.commands.settings_flags import add_settings, read_settings

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from app.commands.bench_contenders import Run

SETTINGS = ("weights", "weights_sha256", "device", "precision", "runtime", "threads")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
PAUSE_S = 0.1

# The side of the matrices whose product is the ceiling, and how many of them are timed together: of one such product on
# a GPU, what starts it and waits for it would be a part that shows.
PRODUCT_SIDE = {"cpu": 4096, "cuda": 8192}
PRODUCTS = {"cpu": 1, "cuda": 10}

# Of a contender and a batch size in a round. Machines change their pace within seconds: many short turns say more than
# few long ones.
TURN_IMAGES = 16
TURN_CALLS = 2
# A GPU is through with sixteen small batches in a few milliseconds, in which its clock has hardly risen.
TURN_S = {"cpu": 0.0, "cuda": 0.3}  # at least
MOST_KEPT_CALLS = 100  # of a turn with more of them the record has their mean only: a GPU's would be megabytes

MIN_CALLS_OF_P99 = 100

# Left out: a contender one call of which takes both longer than this and so many times as long as the engine's, such as
# bfloat16 on a processor that only imitates it.
SLOW_S = 1.0
SLOW_TIMES = 5

# Left out: a product so many times slower than the other one; a small one tells. It is not the ceiling.
SMALL_PRODUCT_SIDE = 512
SLOW_PRODUCT_TIMES = 4


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise argparse.ArgumentTypeError(f"expected batch sizes such as 1,8,32, not {text!r}")
    return sizes


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", choices=["engine"], help="what to measure")
    parser.add_argument("--sizes", type=_sizes, default=SIZES, help="batch sizes [1,2,4,...,512]")
    parser.add_argument(
        "--rounds", type=whole(1), default=5, help="rounds, interleaved; medians are shown [%(default)s]"
    )
    parser.add_argument("--only", nargs="+", default=(), metavar="NAME", help="these contenders, besides the engine")
    parser.add_argument("--json", type=named_path, metavar="FILE", help="also write every round there")
    add_settings(parser, only=SETTINGS)


def run(arguments: argparse.Namespace) -> int:
    """Measure and print; exit 1 if the engine cannot be loaded."""
    settings = read_settings(arguments)
    import numpy as np
    import torch

    from app.backends.backend import EngineUnavailable
    from app.backends.choice import open_backend
    from app.commands.bench_contenders import contenders, engine_is, explained
    from model import checkpoint
    from model.cores import available_cores
    from model.cost import count_macs
    from model.machine import describe
    from model.metadata import CheckpointError

    threads = settings.threads or available_cores()
    settings = settings.model_copy(update={"threads": threads})
    torch.set_num_threads(threads)
    try:
        check_writable(arguments.json)
        source = checkpoint.load(settings.weights, settings.weights_sha256)
        with explained():
            backend = open_backend(source, settings)
    except (CheckpointError, EngineUnavailable, OSError) as error:
        raise SystemExit(f"resnet: error: {error}") from None
    size = source.metadata.input_size
    images = np.random.default_rng(0).integers(0, 256, (max(arguments.sizes), 3, size, size), dtype=np.uint8)
    wanted = source.self_test_probabilities.numpy()
    runs: dict[str, Run] = {}
    engine_s: dict[int, float] = {}
    left_out: dict[str, str] = {}
    for name, make in contenders(source, settings, backend.device, backend).items():
        if name != "engine" and arguments.only and name not in arguments.only:
            continue
        print(f"setting up {name} ...", flush=True)
        try:
            with explained():
                made = make()
                off = float(np.abs(made(source.self_test_images.numpy()) - wanted).max())
                _warm_up(made, images, arguments.sizes, engine_s)
        except EngineUnavailable as error:
            if name == "engine":
                raise SystemExit(f"resnet: error: {error}") from None
            left_out[name] = str(error)
            continue
        print(f"  probabilities within {off:.4f} of those measured in training")
        runs[name] = made
    rounds_s, products = _measure(runs, images, arguments.sizes, arguments.rounds, backend.device)
    operations = 2 * count_macs(source.network(), size)
    result = {
        "command": _command(arguments),
        "device": backend.device,
        "threads": threads,
        "precision": settings.precision,
        "engine_is": engine_is(backend),
        "ceiling": _ceiling(products, PRODUCT_SIDE[backend.device.partition(":")[0]], operations),
        "left_out": left_out,
        "contenders": {name: _summary(by_size, rounds_s["engine"]) for name, by_size in rounds_s.items()},
    }
    _print(result)
    if arguments.json:
        text = json.dumps({"machine": describe(backend.device), **result, "rounds_s": _kept(rounds_s)}, indent=1)
        arguments.json.write_text(text + "\n")
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """Return the command line of these arguments, without the settings that are the environment's or the defaults."""
    given = vars(arguments)
    words = ["resnet", "bench", arguments.what]
    for name in SETTINGS:
        words += ["--" + name.replace("_", "-"), str(given[name])] if name in given else []
    words += ["--sizes", ",".join(map(str, arguments.sizes)), "--rounds", str(arguments.rounds)]
    words += ["--json", str(arguments.json)] if arguments.json else []
    words += ["--only", *arguments.only] if arguments.only else []
    return shlex.join(words)


def _warm_up(run: Run, images: NDArray[np.uint8], sizes: tuple[int, ...], engine_s: dict[int, float]) -> None:
    """Compile, capture and allocate what a contender does at first sight; the first one, the engine, sets the pace.

    Raises EngineUnavailable for a contender that is hopelessly slow.
    """
    from app.backends.backend import EngineUnavailable

    for size in sizes:
        run(images[:size])
        seconds = _seconds(run, images[:size])
        times = seconds / engine_s.setdefault(size, seconds)
        if seconds > SLOW_S and times > SLOW_TIMES:
            raise EngineUnavailable(f"{seconds:.1f} s for a batch of {size}, {times:.0f} times the engine's")


def _seconds(run: Run, images: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    run(images)
    return time.perf_counter() - started


def _measure(
    runs: dict[str, Run], images: NDArray[np.uint8], sizes: tuple[int, ...], rounds: int, device: str
) -> tuple[dict[str, dict[int, list[list[float]]]], dict[str, list[float]]]:
    """Return seconds[contender][size][round] = the times of its calls, and the seconds of large matrix products.

    A turn has as many calls as TURN_CALLS and TURN_IMAGES ask for, and goes on until TURN_S are over.

    Each round has an order of its own, so that none always follows the same one. Each turn, a product's too, begins
    with a pause and a call that does not count: some runtimes' threads spin for a while after their last batch.
    """
    seconds: dict[str, dict[int, list[list[float]]]] = {name: {size: [] for size in sizes} for name in runs}
    kind = device.partition(":")[0]
    matrices = _matrices(device, PRODUCT_SIDE[kind])
    products: dict[str, list[float]] = {name: [] for name in matrices}
    for number in range(rounds):
        for size in sizes:
            order = random.Random(f"{number} {size}").sample([*runs], len(runs))  # noqa: S311 (no secret)
            for name in order:
                run, times = runs[name], list[float]()
                time.sleep(PAUSE_S)
                run(images[:size])
                least, until = max(TURN_CALLS, TURN_IMAGES // size), time.perf_counter() + TURN_S[kind]
                while len(times) < least or time.perf_counter() < until:
                    times.append(round(_seconds(run, images[:size]), 6))
                seconds[name][size].append(times)
        for name, matrix in matrices.items():
            time.sleep(PAUSE_S)
            _product_s(matrix)
            products[name].append(round(_product_s(matrix, PRODUCTS[kind]), 6))
    return seconds, products


def _matrices(device: str, large: int) -> dict[str, torch.Tensor]:
    """Return `large` x `large` matrices by name of their dtype, none in what the device only imitates: minutes."""
    import torch

    def matrix(name: str, side: int) -> torch.Tensor:
        return torch.randn(side, side, device=device, dtype=getattr(torch, name))

    small = {name: matrix(name, SMALL_PRODUCT_SIDE) for name in ("bfloat16", "float32")}
    small_s = {name: min(_product_s(one) for _ in range(3)) for name, one in small.items()}
    slow_s = SLOW_PRODUCT_TIMES * min(small_s.values())
    return {name: matrix(name, large) for name, seconds in small_s.items() if seconds <= slow_s}


def _product_s(matrix: torch.Tensor, times: int = 1) -> float:
    """Return the seconds that a product of the matrix with itself takes, the mean of so many, one after the other."""
    started = time.perf_counter()
    for _ in range(times):
        product = matrix @ matrix
    float(product[0, 0])  # the copy waits for a GPU
    return (time.perf_counter() - started) / times


def _ceiling(products: dict[str, list[float]], side: int, operations: int) -> dict[str, Any]:
    """Return how many images/s the machine could compute if all of it were as fast as one large matrix product."""
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


def _kept(rounds_s: dict[str, dict[int, list[list[float]]]]) -> dict[str, dict[int, list[list[float]]]]:
    """Return what the record has of the turns: the seconds of each call, or of many calls their mean alone."""

    def kept(times: list[float]) -> list[float]:
        return times if len(times) <= MOST_KEPT_CALLS else [round(statistics.fmean(times), 9)]

    return {
        name: {size: [kept(times) for times in turns] for size, turns in by_size.items()}
        for name, by_size in rounds_s.items()
    }


def _summary(
    by_size: dict[int, list[list[float]]], engine: dict[int, list[list[float]]]
) -> dict[str, dict[str, float]]:
    """Return by size: images/s and the engine's rate over this one's, medians of rounds; latency in ms, all calls."""
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


def _print(result: dict[str, Any]) -> None:
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
