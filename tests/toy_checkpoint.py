"""A small checkpoint for tests of its file, to be made with few channels (`narrow_stages`), and how one is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from model import checkpoint
from model.architecture import Architecture
from model.metadata import CheckpointError, Metadata

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]

METADATA = Metadata(
    name="toy",
    architecture=Architecture("resnet18", 3).to_dict(),
    classes=("cat", "dog", "fish"),
    input_size=8,
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.25, 0.3),
    temperature=1.5,
    measured=({"split": "held-out", "top1": 0.5},),
)


def toy_tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return checkpoint.tensors_to_store(Architecture.from_dict(METADATA.architecture).build())


def toy_images() -> Images:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 8, 8), np.uint8)


def toy_probabilities() -> Probabilities:
    return torch.softmax(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1).numpy()


def refusal(path: Path) -> str:
    """Load a file that must be refused; return the reason after checking that it is one line naming the file."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    start = f"checkpoint {path}: "
    assert message.startswith(start)
    assert len(message.splitlines()) == 1
    return message.removeprefix(start)
