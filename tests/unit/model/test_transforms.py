import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.functional import to_tensor

from model.evaluate import compute_logits
from model.transforms import (
    CIFAR10_MEAN,
    CIFAR10_STD,
    evaluation_transform,
    normalise,
    resize_batch,
)


def random_picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width * height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def full_resize_then_crop(image: Image.Image, size: int) -> NDArray[np.uint8]:
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return np.asarray(resized.crop((left, top, left + size, top + size))).transpose(2, 0, 1)


def test_picture_of_the_right_size_passes_untouched() -> None:
    picture = random_picture(32, 32)
    result = evaluation_transform(picture, 32)
    assert result.dtype == np.uint8
    assert np.array_equal(result, np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize("width_height", [(64, 32), (200, 133), (133, 200), (1000, 77), (31, 90), (64, 64)])
@pytest.mark.parametrize("size", [32, 24])
def test_other_pictures_equal_a_full_resize_and_a_centre_crop(width_height: tuple[int, int], size: int) -> None:
    picture = random_picture(*width_height)
    result = evaluation_transform(picture, size).astype(int)
    expected = full_resize_then_crop(picture, size).astype(int)
    assert result.shape == (3, size, size)
    assert np.abs(result - expected)[:, 1:-1, 1:-1].max() <= 2


@pytest.mark.parametrize("width_height", [(5000, 1), (1, 5000), (1, 1), (3, 2000)])
def test_slivers_keep_their_colour(width_height: tuple[int, int]) -> None:
    result = evaluation_transform(Image.new("RGB", width_height, (10, 200, 30)), 32)
    assert result.shape == (3, 32, 32)
    assert np.array_equal(result.max(axis=(1, 2)), [10, 200, 30])
    assert np.array_equal(result.min(axis=(1, 2)), [10, 200, 30])


def test_normalise_equals_torchvisions() -> None:
    picture = random_picture(32, 32)
    expected = v2.functional.normalize(to_tensor(picture), list(CIFAR10_MEAN), list(CIFAR10_STD))
    images = torch.from_numpy(evaluation_transform(picture, 32))[None]
    result = normalise(images, torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD))
    torch.testing.assert_close(result[0], expected, rtol=0, atol=1e-6)


def test_evaluation_draws_no_random_numbers() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Flatten(), nn.LazyLinear(4))
    network(torch.zeros(2, 3, 16, 16))
    picture = random_picture(50, 40)

    def evaluate() -> Tensor:
        image = torch.from_numpy(evaluation_transform(picture, 16))
        return compute_logits(network.train(), image[None], CIFAR10_MEAN, CIFAR10_STD)

    state = torch.get_rng_state()
    assert torch.equal(evaluate(), evaluate())
    assert torch.equal(torch.get_rng_state(), state)
    assert network.training


def test_resize_batch_averages_over_what_it_shrinks() -> None:
    stripes = torch.tensor([0.0, 0.0, 1.0, 1.0]).repeat(8).expand(2, 3, 32, 32)
    assert resize_batch(stripes, 32) is stripes
    small = resize_batch(stripes, 8)
    assert small.shape == (2, 3, 8, 8)
    torch.testing.assert_close(small[..., 1:-1], torch.full((2, 3, 8, 6), 0.5))
