"""`resnet train` on 112 pictures of noise, for the tests of what it does and leaves."""

from pathlib import Path

import torch

from app.cli import build_parser
from model.data import Dataset, Split


def toy_dataset(*_where: object, split: Split, **_options: object) -> Dataset:
    count = 112 if split == "train" else 40
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("toy", split, images, torch.arange(count) % 4, ("ant", "bee", "cat", "dog"))


def train(out: Path, *more: str) -> int:
    recipe = ["--phases", "8:2", "--batch-size", "4", "--hold-out", "16", "--device", "cpu"]
    arguments = build_parser().parse_args(["train", "--out", str(out), *recipe, *more])
    return arguments.run(arguments)
