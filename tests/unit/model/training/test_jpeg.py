import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.training.jpeg import quantisation_tables, recompress
from tests.conftest import ROOT


def pixels_of(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def pictures_of(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().numpy()]


def saved(picture: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=2)
    return Image.open(buffer)


def distance(one: Tensor, other: Tensor) -> float:
    """Return the mean absolute difference in levels of 255."""
    return float((one.float() - other.float()).abs().mean())


@pytest.fixture(scope="module")
def photos() -> Tensor:
    return torch.stack([pixels_of(Image.open(path)) for path in sorted((ROOT / "examples").glob("*.png"))])


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 95, 100])
def test_quantisation_tables_are_those_of_a_real_file(quality: int) -> None:
    tables = quantisation_tables(torch.tensor([quality]))[0]
    real = saved(Image.new("RGB", (16, 16)), quality).quantization
    assert [tables[0].tolist(), tables[1].tolist()] == [list(real[0]), list(real[1])]


@pytest.mark.parametrize("quality", [50, 75, 95])
@pytest.mark.parametrize("height_width", [(32, 32), (29, 21), (16, 24)])
def test_loss_is_that_of_a_real_file(photos: Tensor, quality: int, height_width: tuple[int, int]) -> None:
    images = photos[:, :, : height_width[0], : height_width[1]]
    ours = recompress(images, torch.full((len(images),), quality))
    real = torch.stack([pixels_of(saved(picture, quality)) for picture in pictures_of(images)])
    assert ours.dtype == torch.uint8
    assert ours.shape == images.shape
    assert distance(ours, real) < 0.8  # whole-number arithmetic rounds differently here and there
    assert distance(images, real) > 4 * distance(ours, real)


def test_every_image_has_its_own_quality(photos: Tensor) -> None:
    quality = torch.tensor([10, 50, 90, 40, 95])
    batch = recompress(photos[:5], quality)
    for number, image in enumerate(photos[:5]):
        assert torch.equal(batch[number], recompress(image[None], quality[number : number + 1])[0])
    assert distance(batch[0], photos[0]) > distance(batch[2], photos[2])


@pytest.mark.parametrize("height_width", [(1, 1), (5, 1), (8, 8), (17, 33)])
def test_flat_colours_of_any_size_survive(height_width: tuple[int, int]) -> None:
    flat = torch.tensor([200, 30, 90], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, *height_width)
    result = recompress(flat, torch.tensor([95]))
    assert result.shape == flat.shape
    assert int((result.int() - flat.int()).abs().max()) <= 3
