"""How `resnet bench engine` measures: contenders in turns, and the matrix products that are the machine's ceiling."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from app.commands.bench_contenders import Run

PAUSE_S = 0.1

# The side of the matrices whose product is the ceiling, and how many products are timed together: of a single one on a
# GPU, starting it and waiting for it would be a part that shows.
PRODUCT_SIDE = {"cpu": 4096, "cuda": 8192}
PRODUCTS = {"cpu": 1, "cuda": 10}

# The least that a contender computes of a batch size in a round: TURN_CALLS calls, and some TURN_IMAGES images.
# Machines change their pace within seconds: many short turns say more than few long ones.
TURN_IMAGES = 16
TURN_CALLS = 2
# A GPU is through with sixteen small batches in a few milliseconds, in which its clock has hardly risen.
TURN_S = {"cpu": 0.0, "cuda": 0.3}  # at least

# A contender is left out if one call takes longer than SLOW_S and more than SLOW_TIMES as long as the engine's, such as
# bfloat16 on a processor that only imitates it.
SLOW_S = 1.0
SLOW_TIMES = 5

# A dtype is no ceiling, and left out, if a small product takes SLOW_PRODUCT_TIMES as long in it as in the other one.
SMALL_PRODUCT_SIDE = 512
SLOW_PRODUCT_TIMES = 4


def warm_up(run: Run, images: NDArray[np.uint8], sizes: tuple[int, ...], engine_s: dict[int, float]) -> None:
    """Let a contender compile, capture and allocate what it does only at the first batch of each size.

    `engine_s` has the engine's seconds by size, with which a contender is compared; the first one here, the engine,
    fills it. Raises EngineUnavailable for a contender that is hopelessly slow.
    """
    from app.engine_errors import EngineUnavailable

    for size in sizes:
        run(images[:size])
        seconds = _call_s(run, images[:size])
        times = seconds / engine_s.setdefault(size, seconds)
        if seconds > SLOW_S and times > SLOW_TIMES:
            raise EngineUnavailable(f"{seconds:.1f} s for a batch of {size}, {times:.0f} times the engine's")


def _call_s(run: Run, images: NDArray[np.uint8]) -> float:
    started = time.perf_counter()
    run(images)
    return time.perf_counter() - started


def measure(
    runs: dict[str, Run], images: NDArray[np.uint8], sizes: tuple[int, ...], rounds: int, device: str
) -> tuple[dict[str, dict[int, list[list[float]]]], dict[str, list[float]]]:
    """Measure contenders and matrix products in turns.

    Returns seconds[contender][size][round], the seconds of each call of that turn, and products[dtype], the seconds of
    a large matrix product in each round. A turn has as many calls as TURN_CALLS and TURN_IMAGES ask for, and goes on
    until TURN_S have passed.

    Each round has an order of its own, so that no contender always follows the same one. Each turn, a product's too,
    begins with a pause and a call that does not count: some runtimes' threads spin for a while after their last batch.
    """
    from app.backends.backend import device_kind

    seconds: dict[str, dict[int, list[list[float]]]] = {name: {size: [] for size in sizes} for name in runs}
    kind = device_kind(device)
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
                    times.append(round(_call_s(run, images[:size]), 6))
                seconds[name][size].append(times)
        for name, matrix in matrices.items():
            time.sleep(PAUSE_S)
            _product_s(matrix)
            products[name].append(round(_product_s(matrix, PRODUCTS[kind]), 6))
    return seconds, products


def _matrices(device: str, large: int) -> dict[str, torch.Tensor]:
    """Return `large` x `large` matrices by name of their dtype.

    None is in a dtype that the device only imitates, in which one product would take minutes.
    """
    import torch

    def matrix(name: str, side: int) -> torch.Tensor:
        return torch.randn(side, side, device=device, dtype=getattr(torch, name))

    small = {name: matrix(name, SMALL_PRODUCT_SIDE) for name in ("bfloat16", "float32")}
    small_s = {name: min(_product_s(factor) for _ in range(3)) for name, factor in small.items()}
    slow_s = SLOW_PRODUCT_TIMES * min(small_s.values())
    return {name: matrix(name, large) for name, seconds in small_s.items() if seconds <= slow_s}


def _product_s(matrix: torch.Tensor, times: int = 1) -> float:
    """Return the seconds that a product of the matrix with itself takes: the mean of `times`, one after the other."""
    started = time.perf_counter()
    for _ in range(times):
        product = matrix @ matrix
    float(product[0, 0])  # the copy waits for a GPU
    return (time.perf_counter() - started) / times
