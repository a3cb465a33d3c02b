"""Which pictures a checkpoint carries to test itself by."""

import pytest
import torch
from torch import Tensor, nn

from model.calibration import Calibration
from model.data import Dataset, channel_statistics
from model.training.self_test import SELF_TEST_COUNT, choose_self_test, synthetic_images


class Brightness(nn.Module):
    """Of two classes, the second one is the likelier, the brighter a picture's first pixel is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        bright = images[:, 0, 0, 0] * self.weight
        return torch.stack([-bright, bright], dim=1)


def pictures(levels: range | list[int]) -> Dataset:
    """Make pictures of one grey level each, 128 being the one that is the least certain."""
    images = torch.tensor(list(levels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    grey = (0.5, 0.5, 0.5)
    return Dataset("grey", "train", images, torch.zeros(len(images), dtype=torch.int64), ("dark", "light"), grey, grey)


def chosen(held: Dataset, training: Dataset) -> list[int]:
    images, probabilities = choose_self_test(Brightness(), held, training, Calibration())
    assert len(images) == len(probabilities)
    return [int(image[0, 0, 0]) for image in images]


def test_half_are_the_least_certain_and_half_evenly_spaced_over_the_others() -> None:
    levels = chosen(pictures(range(256)), pictures([]))
    assert sorted(levels[:8]) == list(range(124, 132))
    assert levels[8:] == [0, 31, 62, 93, 132, 163, 194, 225]


@pytest.mark.parametrize("held", [0, 1, 5, 15, 16])
def test_training_pictures_make_up_for_held_out_ones_that_are_missing(held: int) -> None:
    levels = chosen(pictures(range(held)), pictures(range(100, 200)))
    assert sorted(levels) == [*range(held), *range(100, 100 + SELF_TEST_COUNT - held)]


def test_equal_pictures_count_once() -> None:
    levels = chosen(pictures([1, 1, 1, 2]), pictures([2, 3, 3, *range(4, 40)]))
    assert sorted(levels) == list(range(1, SELF_TEST_COUNT + 1))


def test_of_fewer_pictures_than_are_wanted_each_is_there_once() -> None:
    assert sorted(chosen(pictures([7, 7]), pictures([7, 9]))) == [7, 9]


@pytest.mark.parametrize("size", [8, 20])
def test_synthetic_images_are_always_the_same_and_about_as_bright_as_pictures(size: int) -> None:
    mean, std = (0.6, 0.5, 0.3), (0.1, 0.15, 0.2)
    images = synthetic_images(size, mean, std)
    assert images.shape[1:] == (3, size, size)
    assert len({image.numpy().tobytes() for image in images}) == len(images)
    assert torch.equal(synthetic_images(size, mean, std), images)
    found_mean, found_std = channel_statistics(images)
    assert found_mean == pytest.approx(mean, abs=0.05)
    assert found_std == pytest.approx(std, abs=0.05)


def test_coarse_noise_prevails_in_the_first_synthetic_images_and_fine_noise_in_the_last() -> None:
    grey = (0.5, 0.5, 0.5)
    images = synthetic_images(32, grey, (0.2, 0.2, 0.2)).float()
    between_neighbours = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
    assert between_neighbours[:8].max() < between_neighbours[-8:].min() / 2
