import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.robustness import corrupt
from model.training.corruptions import apply_corruptions, draw_corruptions, greyscale, rescale
from model.training.jpeg import recompress
from model.training.recipe import Augmentation
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def photos() -> Tensor:
    pictures = [Image.open(path).convert("RGB") for path in sorted((ROOT / "examples").glob("*.png"))]
    return torch.stack([torch.from_numpy(np.array(picture)).permute(2, 0, 1) for picture in pictures])


def difference(one: Tensor, other: Tensor) -> Tensor:
    return (one.int() - other.int()).abs()


def test_greyscale_is_pillows(photos: Tensor) -> None:
    grey, real = greyscale(photos), corrupt(photos, "greyscale")
    assert grey.dtype == torch.uint8
    assert int(difference(grey, real).max()) <= 1
    assert float(difference(grey, real).double().mean()) < 0.01


def test_rescale_is_pillows(photos: Tensor) -> None:
    blurred, real = rescale(photos), corrupt(photos, "upscaled-4x")
    assert blurred.dtype == torch.uint8
    assert int(difference(blurred, real).max()) <= 2  # Pillow rounds, and cuts off, in between
    assert float(difference(blurred, real).double().mean()) < 0.5
    assert float(difference(photos, real).double().mean()) > 2


def test_shares_and_qualities_are_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    wanted = Augmentation(jpeg=0.25, greyscale=0.1, rescale=0.5)
    grey, rescaled, quality = draw_corruptions(10_000, wanted, generator)
    assert float(grey.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float(rescaled.double().mean()) == pytest.approx(0.5, abs=0.02)
    assert float((quality > 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert quality[quality > 0].unique().tolist() == list(range(40, 96))


@pytest.mark.parametrize("wanted", [(0.0, 1.0, 0.0), (1.0, 0.0, 1.0)])
def test_shares_of_none_and_all(wanted: tuple[float, float, float]) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = draw_corruptions(1000, Augmentation(jpeg=wanted[2], greyscale=wanted[0], rescale=wanted[1]), generator)
    for choice, share in zip(drawn, wanted, strict=True):
        assert bool(((choice > 0) == bool(share)).all())


def test_only_the_chosen_images_change(photos: Tensor) -> None:
    grey = torch.tensor([False, True, False, False, True])
    rescaled = torch.tensor([False, False, True, False, True])
    quality = torch.tensor([0, 0, 0, 60, 60])
    result = apply_corruptions(photos[:5], grey, rescaled, quality)
    assert torch.equal(result[0], photos[0])
    assert torch.equal(result[1:2], greyscale(photos[1:2]))
    assert torch.equal(result[2:3], rescale(photos[2:3]))
    assert torch.equal(result[3:4], recompress(photos[3:4], quality[3:4]))
    assert torch.equal(result[4:], recompress(rescale(greyscale(photos[4:5])), quality[4:]))
