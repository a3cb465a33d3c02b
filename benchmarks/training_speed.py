"""What the convolutions of model/training/im2col_convolution.py gain: training steps on this CPU with and without them.

python -m benchmarks.training_speed

A step is a whole one of the recipe for CPUs: augmentation, forward, backward, optimiser, moving average. Both take
turns in each round; the record has medians of images/s.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from unittest import mock

import torch

from benchmarks.records import write
from model.data import Dataset
from model.training import learner
from model.training.learner import Learner
from model.training.recipe import PRESETS

SIZES = (16, 24, 32)
ROUNDS = 7
STEPS = 3
PIXELS = 32
CLASSES = 10


def noise(count: int) -> Dataset:
    """Return `count` pictures of noise, with labels."""
    images = torch.randint(0, 256, (count, 3, PIXELS, PIXELS), dtype=torch.uint8)
    return Dataset("noise", "train", images, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))


def open_learners(size: int) -> dict[str, Learner]:
    """Return two learners that train at `size` pixels: with convolutions by patches, and with torch's."""
    recipe = replace(PRESETS["cpu"], phases=((size, 1),), hold_out=0)
    data, device = noise(recipe.batch_size * STEPS), torch.device("cpu")
    learners = {"patches": Learner(recipe, data, device=device)}
    with mock.patch.object(learner, "use_im2col_convolutions"):
        learners["plain"] = Learner(recipe, data, device=device)
    for one in learners.values():
        one.network.train()
    return learners


def rate(one: Learner) -> float:
    """Return the images/s of an epoch of STEPS steps."""
    order, draws = one.draw_epoch(0)
    started = time.perf_counter()
    for number in range(one.steps_per_epoch):
        one.step(0, number, order, draws)
    return one.steps_per_epoch * one.recipe.batch_size / (time.perf_counter() - started)


def measure(size: int) -> dict[str, object]:
    """Return both learners' images/s at a size in pixels, by round and in the median, and the median of the ratios."""
    learners = open_learners(size)
    for one in learners.values():
        rate(one)
    rounds = [{name: round(rate(one), 1) for name, one in learners.items()} for _ in range(ROUNDS)]
    medians = {name: median(each[name] for each in rounds) for name in learners}
    ratio = median(each["patches"] / each["plain"] for each in rounds)
    print(f"{size} x {size}: {medians}, ratio {ratio:.2f}", flush=True)
    return {"size": size, "images_per_s": medians, "ratio": round(ratio, 3), "rounds": rounds}


def main() -> None:
    """Measure every size and write the record."""
    autocast = open_learners(SIZES[0])["patches"].autocast
    results = [measure(size) for size in SIZES]
    write(
        "training_speed.json",
        {
            "command": "python -m benchmarks.training_speed",
            "batch_size": PRESETS["cpu"].batch_size,
            "dtype": "bfloat16" if autocast else "float32",
            "sizes": results,
        },
    )


if __name__ == "__main__":
    main()
