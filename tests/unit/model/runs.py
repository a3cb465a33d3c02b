"""Short runs in this process: 64 pictures of noise, learnt by heart."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.train import Trainer
from model.training.recipe import Recipe
from tests import toy_training
from tests.toy_training import toy_dataset

RECIPE = replace(toy_training.RECIPE, learning_rate=0.1, cutmix=0.0)


def trainer(out: Path, recipe: Recipe = RECIPE, **options: Any) -> Trainer:
    return Trainer(recipe, toy_dataset(), out, device=torch.device("cpu"), **options)


def everything_stored(loaded: Checkpoint) -> dict[str, Tensor]:
    return {
        **loaded.tensors,
        "images": torch.tensor(loaded.self_test_images),
        "probabilities": torch.tensor(loaded.self_test_probabilities),
        "temperature": torch.tensor(loaded.metadata.temperature, dtype=torch.double),
    }


def epochs_in(out: Path) -> list[int]:
    return [json.loads(line)["epoch"] for line in (out / "metrics.jsonl").read_text().splitlines()]
