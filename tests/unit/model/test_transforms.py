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
    Augmentation,
    augment,
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


def coordinate_images(count: int, size: int) -> Tensor:
    """Make images whose every pixel says (row, column, number of the image)."""
    index = torch.arange(size)
    rows = index[None, :, None].expand(count, size, size)
    columns = index[None, None, :].expand(count, size, size)
    numbers = torch.arange(count)[:, None, None].expand(count, size, size)
    return torch.stack([rows, columns, numbers], dim=1).to(torch.uint8)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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


def test_shifted_pixels_are_the_images_own_and_move_together() -> None:
    images = coordinate_images(count=50, size=16)
    changed = augment(images, Augmentation(crop_padding=4, flip=True), seeded()).long()
    padded = nn.functional.pad(torch.arange(16.0)[None, None], (4, 4), mode="reflect")[0, 0].long()
    windows = {tuple(padded[start : start + 16].tolist()) for start in range(9)}
    rows, columns, numbers = changed.unbind(dim=1)
    assert torch.equal(numbers, torch.arange(50)[:, None, None].expand(50, 16, 16))
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))
    assert torch.equal(columns, columns[:, :1, :].expand_as(columns))
    assert {tuple(row) for row in rows[:, :, 0].tolist()} == windows
    left_to_right = {tuple(column) for column in columns[:, 0, :].tolist()}
    assert left_to_right <= windows | {window[::-1] for window in windows}


def test_same_seed_gives_the_same_batch_and_another_seed_another() -> None:
    images = coordinate_images(count=8, size=16)
    everything = Augmentation(crop_padding=4, flip=True, cutout=4)
    first = augment(images, everything, seeded(1))
    assert torch.equal(first, augment(images, everything, seeded(1)))
    assert not torch.equal(first, augment(images, everything, seeded(2)))


@pytest.mark.parametrize(
    "augmentation", [Augmentation(4, flip=False), Augmentation(0, flip=True), Augmentation(0, flip=False, cutout=4)]
)
def test_images_of_a_batch_change_differently(augmentation: Augmentation) -> None:
    images = coordinate_images(count=1, size=16).expand(32, 3, 16, 16) + 1
    changed = augment(images, augmentation, seeded())
    assert len({image.numpy().tobytes() for image in changed}) > 1


def test_input_batch_is_not_written_to() -> None:
    images = coordinate_images(count=8, size=16)
    augment(images, Augmentation(4, flip=True, cutout=8), seeded())
    assert torch.equal(images, coordinate_images(count=8, size=16))


def test_nothing_enabled_changes_nothing() -> None:
    images = coordinate_images(count=32, size=8)
    assert torch.equal(augment(images, Augmentation(0, flip=False, cutout=0), seeded()), images)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = coordinate_images(count=100, size=8)
    changed = augment(images, Augmentation(0, flip=True), seeded())
    kept = (changed == images).flatten(1).all(dim=1)
    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert 30 < int(mirrored.sum()) < 70


@pytest.mark.parametrize("cutout", [1, 3, 7, 8])
def test_cutout_blacks_out_one_square(cutout: int) -> None:
    images = torch.full((100, 3, 16, 16), 255, dtype=torch.uint8)
    black = augment(images, Augmentation(0, flip=False, cutout=cutout), seeded()) == 0
    assert torch.equal(black.any(dim=1), black.all(dim=1))
    black = black[:, 0]
    assert int(black.sum(dim=(1, 2)).max()) == cutout**2
    heights, widths = black.any(dim=2).sum(dim=1), black.any(dim=1).sum(dim=1)
    assert int(heights.min()) >= 1
    assert int(heights.max()) == int(widths.max()) == cutout
    assert torch.equal(black.sum(dim=(1, 2)), heights * widths)


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
