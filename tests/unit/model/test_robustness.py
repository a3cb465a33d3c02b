import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from app.imaging import decode
from model.calibration import Calibration
from model.data import Dataset
from model.evaluate import compute_logits, score
from model.robustness import CORRUPTIONS, corrupt, robustness_table, score_corrupted
from model.transforms import CIFAR10_MEAN, CIFAR10_STD
from tests.conftest import ROOT


def photos() -> Tensor:
    pictures = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.png"))]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def dataset() -> Dataset:
    return Dataset("toy", "test", photos(), torch.arange(10) % 3, ("ant", "bee", "cat"))


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(48, 3))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_keep_the_form_and_are_the_same_every_time(name: str) -> None:
    images = photos()
    once = corrupt(images, name)
    assert once.dtype == torch.uint8
    assert once.shape == images.shape
    assert torch.equal(images, photos())
    assert torch.equal(once, corrupt(images, name))
    assert torch.equal(once, images) == (name == "clean")


def test_worse_quality_is_further_from_the_picture() -> None:
    images = photos()
    lost = [float((corrupt(images, f"jpeg-{quality}").float() - images).abs().mean()) for quality in (95, 75, 50)]
    assert lost == sorted(lost)
    assert lost[0] > 0


def test_greyscale_has_three_equal_channels() -> None:
    grey = corrupt(photos(), "greyscale")
    assert torch.equal(grey[:, 0], grey[:, 1])
    assert torch.equal(grey[:, 0], grey[:, 2])


@pytest.mark.parametrize(
    ("name", "image_format", "options"),
    [("jpeg-75", "JPEG", {"quality": 75}), ("webp-75", "WEBP", {"quality": 75}), ("upscaled-4x", "PNG", {})],
)
def test_pixels_are_those_that_the_service_decodes(name: str, image_format: str, options: dict[str, int]) -> None:
    image = photos()[:1]
    picture = Image.fromarray(image[0].permute(1, 2, 0).numpy())
    if name == "upscaled-4x":
        picture = picture.resize((128, 128), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    picture.save(file, image_format, **options)
    assert np.array_equal(corrupt(image, name)[0].numpy(), decode(file.getvalue(), 32, 1 << 20))


def test_unknown_corruption_is_an_error() -> None:
    with pytest.raises(KeyError):
        corrupt(photos(), "jpeg-3")


def test_scores_are_those_of_the_corrupted_pictures(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.robustness.CHUNK", 4)
    seen: list[int] = []
    scores = score_corrupted(
        network,
        dataset(),
        CIFAR10_MEAN,
        CIFAR10_STD,
        Calibration(0.5),
        names=("clean", "greyscale"),
        progress=seen.append,
    )
    assert seen == [4, 4, 2, 4, 4, 2]
    for name, found in scores.items():
        logits = compute_logits(network, corrupt(photos(), name), CIFAR10_MEAN, CIFAR10_STD)
        assert found.nll == pytest.approx(score(torch.softmax(logits / 0.5, dim=1), dataset()).nll, abs=1e-6)
    assert scores["clean"].nll != scores["greyscale"].nll


def test_table_says_the_change_against_clean(network: nn.Module) -> None:
    scores = score_corrupted(network, dataset(), CIFAR10_MEAN, CIFAR10_STD, Calibration(), names=CORRUPTIONS)
    table = robustness_table(scores)
    assert list(table) == list(CORRUPTIONS)
    for name, row in table.items():
        assert row["top1"] == scores[name].top1
        assert row["top1_change"] == pytest.approx(scores[name].top1 - scores["clean"].top1)
    assert table["clean"]["top1_change"] == 0
