from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.training.augment import AugmentationDraws, augment_batch, draw_augmentation
from model.training.recipe import Augmentation

NOTHING = Augmentation(crop_padding=0, flip=False)
GREY = torch.tensor([100, 110, 120], dtype=torch.uint8)


def coordinate_images(count: int, size: int) -> Tensor:
    """Make images whose every pixel says (row, column, number of the image)."""
    index = torch.arange(size)
    rows = index[None, :, None].expand(count, size, size)
    columns = index[None, None, :].expand(count, size, size)
    numbers = torch.arange(count)[:, None, None].expand(count, size, size)
    return torch.stack([rows, columns, numbers], dim=1).to(torch.uint8)


def augment(images: Tensor, augmentation: Augmentation, seed: int = 0, epoch: int = 0) -> Tensor:
    """Change every image once, in their order."""
    draws = draw_augmentation(augmentation, len(images), images.shape[-1], seed=seed, epoch=epoch)
    return augment_batch(images, torch.arange(len(images)), draws, augmentation, GREY)


def test_shifted_pixels_are_the_images_own_and_move_together() -> None:
    images = coordinate_images(count=50, size=16)
    changed = augment(images, Augmentation(crop_padding=4, flip=True)).long()
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
    everything = Augmentation(crop_padding=4, flip=True, cutout=4, cutmix=0.5)
    first = augment(images, everything, seed=1)
    assert torch.equal(first, augment(images, everything, seed=1))
    assert not torch.equal(first, augment(images, everything, seed=2))


@pytest.mark.parametrize("cutmix", [0.0, 1.0])
@pytest.mark.parametrize("cutout", [0, 4])
@pytest.mark.parametrize("greyscale", [0.0, 1.0])
def test_whatever_was_changed_is_channels_last(cutmix: float, cutout: int, greyscale: float) -> None:
    everything = Augmentation(crop_padding=4, flip=True, cutout=cutout, cutmix=cutmix, greyscale=greyscale)
    changed = augment(coordinate_images(count=8, size=16), everything)
    assert changed.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "augmentation",
    [
        replace(NOTHING, crop_padding=4),
        replace(NOTHING, flip=True),
        replace(NOTHING, flip=True, alternating_flip=True),
        replace(NOTHING, cutout=4),
    ],
)
def test_images_of_a_batch_change_differently(augmentation: Augmentation) -> None:
    images = coordinate_images(count=1, size=16).expand(32, 3, 16, 16) + 1
    changed = augment(images, augmentation)
    assert len({image.numpy().tobytes() for image in changed}) > 1


def test_input_batch_is_not_written_to() -> None:
    images = coordinate_images(count=8, size=16)
    augment(images, Augmentation(4, flip=True, cutout=8, cutmix=1.0))
    assert torch.equal(images, coordinate_images(count=8, size=16))


def test_nothing_enabled_changes_nothing() -> None:
    images = coordinate_images(count=32, size=8)
    assert torch.equal(augment(images, NOTHING), images)


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = coordinate_images(count=100, size=8)
    changed = augment(images, replace(NOTHING, flip=True))
    kept = (changed == images).flatten(1).all(dim=1)
    mirrored = (changed == images.flip(3)).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert 30 < int(mirrored.sum()) < 70


@pytest.mark.parametrize("cutout", [1, 3, 7, 8])
def test_cutout_covers_one_square(cutout: int) -> None:
    images = torch.full((100, 3, 16, 16), 255, dtype=torch.uint8)
    changed = augment(images, replace(NOTHING, cutout=cutout))
    covered = (changed == GREY.view(1, 3, 1, 1)).all(dim=1)
    assert bool((covered | (changed == 255).all(dim=1)).all())
    assert int(covered.sum(dim=(1, 2)).max()) == cutout**2
    heights, widths = covered.any(dim=2).sum(dim=1), covered.any(dim=1).sum(dim=1)
    assert int(heights.min()) >= 1
    assert int(heights.max()) == int(widths.max()) == cutout
    assert torch.equal(covered.sum(dim=(1, 2)), heights * widths)


def test_epochs_differ() -> None:
    images = coordinate_images(count=8, size=16)
    everything = Augmentation(crop_padding=4, flip=True, cutout=4)
    assert not torch.equal(augment(images, everything, epoch=0), augment(images, everything, epoch=1))


def test_alternating_flip_shows_each_side_every_other_epoch() -> None:
    images = coordinate_images(count=100, size=8)
    alternating = replace(NOTHING, flip=True, alternating_flip=True)
    first, second, third = (augment(images, alternating, epoch=epoch) for epoch in range(3))
    assert torch.equal(second, first.flip(3))
    assert torch.equal(third, first)
    assert 30 < int((first == images).flatten(1).all(dim=1).sum()) < 70


def test_cutmix_lays_a_patch_of_its_partner_over_the_image() -> None:
    images = coordinate_images(count=200, size=16)
    mixing = replace(NOTHING, cutmix=1.0)
    draws = draw_augmentation(mixing, 200, 16, seed=0, epoch=0)
    changed = augment_batch(images, torch.arange(200), draws, mixing, GREY)
    rows, columns, numbers = changed.long().unbind(dim=1)
    along = torch.arange(16)
    assert torch.equal(rows, along[None, :, None].expand_as(rows))  # a patch keeps its place
    assert torch.equal(columns, along[None, None, :].expand_as(columns))
    own = numbers == torch.arange(200)[:, None, None]
    patch = numbers == draws.partner[:, None, None]
    assert bool((own | patch).all())
    mixed = draws.partner != torch.arange(200)
    share = own.float().mean(dim=(1, 2))
    torch.testing.assert_close(share[mixed], draws.kept_share(16)[mixed])
    assert share[mixed].min() < 0.3
    assert share[mixed].max() > 0.9


def test_cutmix_takes_its_patch_of_the_partner_as_that_one_is_changed() -> None:
    """In the paper, a batch is cropped and flipped before its images are mixed."""
    images = coordinate_images(count=200, size=16)
    mixing = Augmentation(crop_padding=4, flip=True, cutmix=1.0)
    draws = draw_augmentation(mixing, 200, 16, seed=0, epoch=0)
    index = torch.arange(0, 200, 3)
    mixed = augment_batch(images, index, draws, mixing, GREY)
    alone = augment_batch(images, torch.arange(200), draws, replace(mixing, cutmix=0.0), GREY)
    own, partners = alone[index], alone[draws.partner[index]]
    patch = (mixed[:, 2] == draws.partner[index].view(-1, 1, 1))[:, None]
    assert torch.equal(mixed, torch.where(patch, partners, own))
    assert not torch.equal(mixed, torch.where(patch, images[draws.partner[index]], own))


def test_cutmix_mixes_the_given_share() -> None:
    draws = draw_augmentation(replace(NOTHING, cutmix=0.3), 2000, 16, seed=0, epoch=0)
    assert 0.2 < float((draws.kept_share(16) < 1).float().mean()) < 0.4
    none = draw_augmentation(NOTHING, 2000, 16, seed=0, epoch=0)
    assert bool((none.kept_share(16) == 1).all())


def test_image_changes_alike_in_whatever_batch_it_is() -> None:
    images = coordinate_images(count=20, size=16)
    everything = Augmentation(crop_padding=4, flip=True, cutout=4, cutmix=0.5)
    draws: AugmentationDraws = draw_augmentation(everything, 20, 16, seed=3, epoch=5)
    together = augment_batch(images, torch.arange(20), draws, everything, GREY)
    index = torch.tensor([17, 3, 3])
    assert torch.equal(augment_batch(images, index, draws, everything, GREY), together[index])


def test_the_area_of_a_patch_is_uniform_before_the_border_cuts_it() -> None:
    """Of a side t that lies anywhere, t - t^2 / 4 is inside on average; squared, for t^2 uniform: 1/2 - 1/5 + 1/48."""
    draws = draw_augmentation(replace(NOTHING, cutmix=1.0), 50_000, 256, seed=0, epoch=0)
    covered = float(1 - draws.kept_share(256).mean())
    assert covered == pytest.approx(1 / 2 - 1 / 5 + 1 / 48, abs=0.01)
