from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from model import checkpoint
from model.architecture import Architecture
from model.data import Dataset
from model.metadata import Metadata
from tests.conftest import logging_put_back
from tests.torch_threads import one_torch_thread
from tests.unit.app.toy_runs import toy_dataset

TOY_CLASSES = ("ant", "bee", "cat", "dog")


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    with one_torch_thread():
        yield


def toy_test_set(*_args: object, **_options: object) -> Dataset:
    """Make 40 images of noise and of the first three classes: there is no dog."""
    images = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset("toy", "test", images, torch.arange(40) % 3, TOY_CLASSES)


@pytest.fixture
def toy_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Save an untrained checkpoint of a narrow network, and put the toy test set in the place of CIFAR-10."""
    monkeypatch.setattr("model.datasets.load_dataset", toy_test_set)
    monkeypatch.setattr("model.architecture.STAGE_WIDTHS", (16, 16, 32, 32))
    torch.manual_seed(0)
    architecture = Architecture("resnet18", len(TOY_CLASSES))
    metadata = Metadata(
        name="toy",
        architecture=architecture.to_dict(),
        classes=TOY_CLASSES,
        input_size=16,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        measured=({"split": "toy held-out", "images": 5, "top1": 0.5, "nll": 1.0, "ece": 0.1},),
    )
    tensors = checkpoint.tensors_to_store(architecture.build())
    path = tmp_path / "toy.safetensors"
    images, probabilities = toy_test_set().images[:2].numpy(), np.full((2, len(TOY_CLASSES)), 0.25, np.float32)
    checkpoint.save(path, metadata, tensors, images, probabilities)
    return path


@pytest.fixture
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let refused connections close soon."""
    monkeypatch.setattr("app.http.answering.LINGER_S", 0.01)


@pytest.fixture
def own_logging() -> Iterator[None]:
    """Let the logging that a command sets up end with the test."""
    with logging_put_back():
        yield


@pytest.fixture(scope="module")
def tiny_data() -> Iterator[None]:
    """Small data and a narrow network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("model.datasets.load_dataset", toy_dataset)
        patch.setattr("model.architecture.STAGE_WIDTHS", (16, 16, 32, 32))
        yield


@pytest.fixture
def tiny_runs(tiny_data: None, own_logging: None) -> None:
    """Let the test run commands on them."""
