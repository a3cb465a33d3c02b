"""`resnet train` on 112 pictures of noise, for the tests of what it does and leaves."""

from pathlib import Path

import pytest
import torch

from app.cli import build_parser
from model.data import Dataset, Split
from model.train import Trainer
from model.training.errors import TrainingError

STEPS = 24  # an epoch: 112 images, 16 held out, 4 a step


def toy_dataset(*_where: object, split: Split, **_options: object) -> Dataset:
    count = 112 if split == "train" else 40
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("toy", split, images, torch.arange(count) % 4, ("ant", "bee", "cat", "dog"))


def train(out: Path, *more: str) -> int:
    recipe = ["--phases", "8:2", "--batch-size", "4", "--hold-out", "16", "--device", "cpu"]
    arguments = build_parser().parse_args(["train", "--out", str(out), *recipe, *more])
    return arguments.run(arguments)


def crash_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trainers save at every epoch's end, and fail when they have written the line of one and not yet that."""
    save_state = Trainer._save_state

    def crash(self: Trainer) -> None:
        if self.epoch == number:
            raise TrainingError("crashed")
        save_state(self)

    monkeypatch.setattr(Trainer, "_save_state", crash)
    monkeypatch.setattr(Trainer, "_is_time_to_save", lambda self, _now: self.tally.steps == 0)
