"""Whether a picture gets the same answer in whatever batch it comes, as clients are promised.

A device computes batches of different sizes by different kernels, whose sums are rounded in another order, and of two
ways to compute one may be for single images and one for batches. How far that moves probabilities depends on the
precision and on the checkpoint, so it is measured where the engine is opened. Probabilities are compared and not
logits: near certainty the same error of a logit moves next to nothing, else as much as a quarter of it and more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import NDArray

from app.engine_errors import EngineOutOfMemory
from model.batch_sizes import batch_size_for
from model.calibration import Calibration

# What is promised: no probability moves by more.
BOUND = 1e-3

# On so many pictures is compared what computes on a CPU; of large ones on fewer, which take as long.
COMPARED = 24
LEAST_COMPARED = 8


def too_much(off: float) -> str:
    """Return what the log says of answers that move by `off`, more than BOUND, with the size of the batch."""
    return f"probabilities move by {off:.4f} with the size of the batch, more than the promised {BOUND}"


def probability_difference(
    calibration: Calibration, logits: NDArray[np.float32], expected: NDArray[np.float32]
) -> float:
    """Return by how much a probability differs at most, of two times logits (N, classes); NaN where one of them is."""
    probabilities = [calibration.probabilities_numpy(each) for each in (logits, expected)]
    return float(np.abs(probabilities[0] - probabilities[1]).max())


def compared_pictures(examples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return what ways to compute on a CPU are compared on, uint8 (n, 3, S, S), n at most COMPARED.

    `examples` are a checkpoint's self-test images, of the same form, of which the least certain ones come first.
    Averages of two of them follow, which are neither the one nor the other, then `distinct` ones.
    """
    averages = ((examples.astype(np.uint16) + np.roll(examples, 1, axis=0)) // 2).astype(np.uint8)
    count = batch_size_for(examples.shape[-1], COMPARED, least=LEAST_COMPARED)
    return distinct(np.concatenate([examples, averages]), count)


def distinct(examples: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return so many pictures that no two of them are alike: the examples, and again, shifted to the side and down."""
    times, width = -(-count // len(examples)), examples.shape[-1]
    shifted = [np.roll(examples, divmod(shift, width), axis=(-2, -1)) for shift in range(times)]
    return np.concatenate(shifted)[:count]


def max_difference_between_batch_sizes(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pictures: NDArray[np.uint8], sizes: Iterable[int]
) -> float:
    """Return the largest difference of a probability of the pictures, uint8 (n, 3, S, S), between batches of `sizes`.

    `run` maps uint8 (N, 3, S, S) to probabilities (N, classes). The smallest size comes first, which shows what works
    at all, then the largest, whose memory serves the others. It stops once BOUND is passed, and skips a size that
    does not fit into the memory: no batch will have it. NaN differs by infinity.
    """
    least = most = None
    off = 0.0
    smallest, *larger = sorted(sizes)
    for size in (smallest, *reversed(larger)):
        try:
            found = in_batches(run, pictures, size)
        except EngineOutOfMemory:
            continue
        least = found if least is None else np.minimum(least, found)
        most = found if most is None else np.maximum(most, found)
        off = float((most - least).max())
        if not off <= BOUND:  # also catches NaN
            return off if off > BOUND else float("inf")
    return off


def in_batches(
    run: Callable[[NDArray[np.uint8]], NDArray[np.float32]], pictures: NDArray[np.uint8], size: int
) -> NDArray[np.float32]:
    """Return what `run` says of the pictures, (n, classes), in full batches of `size`; the last comes around again."""
    parts = [pictures[begin : begin + size] for begin in range(0, len(pictures), size)]
    return np.concatenate([run(np.resize(part, (size, *part.shape[1:])))[: len(part)] for part in parts])
