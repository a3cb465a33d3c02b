"""A GPU without room for all training pictures, of which only the free memory is pretended."""

import re
from pathlib import Path

import pytest
import torch

from model.train import Trainer
from model.training.device_memory import check_device_memory
from model.training.errors import TrainingError
from tests.toy_training import RECIPE, toy_dataset

GPU = torch.device("cuda", 1)
PICTURE = 3 * 100**2


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the GPU have room for ten pictures of 100 x 100, of which eight may be."""
    memory = {GPU: (10 * PICTURE, 80 << 30)}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: memory[device])


@pytest.mark.usefixtures("free")
def test_what_fits_is_taken() -> None:
    check_device_memory(8, 100, GPU)
    check_device_memory(0, 100, GPU)


@pytest.mark.usefixtures("free")
@pytest.mark.parametrize(
    ("count", "size", "advice"),
    [
        (9, 100, "take --image-size 94, fewer pictures or --device cpu"),
        (10_000, 8, "take fewer pictures or --device cpu"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(count: int, size: int, advice: str) -> None:
    said = f"{count} training pictures of {size}x{size} take .* that are free on cuda:1 80% may be taken: {advice}$"
    with pytest.raises(TrainingError, match=said):
        check_device_memory(count, size, GPU)
    check_device_memory(count, size, torch.device("cpu"))


def test_a_run_looks_before_it_puts_anything_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (48 * 3 * 16**2, 80 << 30))
    monkeypatch.setattr("model.train.Learner", lambda *_, **__: pytest.fail("the GPU is used"))
    with pytest.raises(TrainingError, match=re.escape("48 training pictures of 16x16 take 0.0 MiB")):
        Trainer(RECIPE, toy_dataset(), tmp_path, device=GPU)
