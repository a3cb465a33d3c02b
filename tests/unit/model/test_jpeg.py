import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from model.jpeg import as_sent, draw_as_sent, greyscale, quantisation_tables, recompress
from model.recipe import Augmentation
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


def test_greyscale_is_pillows(photos: Tensor) -> None:
    real = torch.stack([pixels_of(picture.convert("L")) for picture in pictures_of(photos)])
    grey = greyscale(photos)
    assert grey.dtype == torch.uint8
    assert int((grey.int() - real.int()).abs().max()) <= 1
    assert distance(grey, real) < 0.01


def test_shares_and_qualities_are_as_asked() -> None:
    generator = torch.Generator().manual_seed(0)
    grey, quality = draw_as_sent(10_000, Augmentation(jpeg=0.25, greyscale=0.1), generator)
    assert float(grey.double().mean()) == pytest.approx(0.1, abs=0.02)
    assert float((quality > 0).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert quality[quality > 0].unique().tolist() == list(range(40, 96))


@pytest.mark.parametrize(("jpeg", "grey"), [(0.0, 1.0), (1.0, 0.0)])
def test_shares_of_none_and_all(jpeg: float, grey: float) -> None:
    chosen, quality = draw_as_sent(1000, Augmentation(jpeg=jpeg, greyscale=grey), torch.Generator().manual_seed(0))
    assert bool((chosen == bool(grey)).all())
    assert bool(((quality > 0) == bool(jpeg)).all())


def test_only_the_chosen_images_change(photos: Tensor) -> None:
    grey = torch.tensor([False, True, False, True])
    quality = torch.tensor([0, 0, 60, 60])
    result = as_sent(photos[:4], grey, quality)
    assert torch.equal(result[0], photos[0])
    assert torch.equal(result[1:2], greyscale(photos[1:2]))
    assert torch.equal(result[2:3], recompress(photos[2:3], quality[2:3]))
    assert torch.equal(result[3:4], recompress(greyscale(photos[3:4]), quality[3:4]))
