from dataclasses import fields, replace

import torch
from torch import Tensor

from model.training.augment import AugmentationDraws, augment_batch, draw_augmentation
from model.training.corruptions import apply_corruptions
from model.training.recipe import Augmentation, Recipe

GREY = torch.tensor([100, 110, 120], dtype=torch.uint8)
EVERYTHING_ELSE = Augmentation(crop_padding=4, flip=True, cutout=6, cutmix=0.5)


def images(count: int = 6) -> Tensor:
    """Return coloured images without randomness, uint8 (N, 3, 16, 16)."""
    values = torch.arange(count * 3 * 16 * 16).view(count, 3, 16, 16)
    return (values * 7 % 256).to(torch.uint8)


def augment(batch: Tensor, draws: AugmentationDraws, augmentation: Augmentation) -> Tensor:
    return augment_batch(batch, torch.arange(len(batch)), draws, augmentation, GREY)


def test_all_other_choices_are_the_same_with_them() -> None:
    without = draw_augmentation(EVERYTHING_ELSE, 100, 16, seed=5, epoch=1)
    sent = Augmentation(crop_padding=4, flip=True, cutout=6, cutmix=0.5, jpeg=0.5, greyscale=0.5, rescale=0.5)
    drawn = draw_augmentation(sent, 100, 16, seed=5, epoch=1)
    same = {
        field.name
        for field in fields(AugmentationDraws)
        if torch.equal(getattr(without, field.name), getattr(drawn, field.name))
    }
    assert {field.name for field in fields(AugmentationDraws)} - same == {"grey", "rescaled", "quality"}


def test_the_batch_is_changed_after_the_crop_and_before_the_cutout() -> None:
    sent = Augmentation(crop_padding=4, flip=True, jpeg=0.5, greyscale=0.5, rescale=0.5)
    draws = draw_augmentation(sent, 40, 16, seed=5, epoch=1)
    cropped = augment(images(40), draws, Augmentation(crop_padding=4, flip=True))
    expected = apply_corruptions(cropped, draws.grey, draws.rescaled, draws.quality)
    changed = augment(images(40), draws, sent)
    assert torch.equal(changed, expected)
    assert not torch.equal(cropped, expected)
    assert changed.is_contiguous(memory_format=torch.channels_last)
    covered = augment(images(40), draws, replace(sent, cutout=6))
    hole = (covered != expected).any(dim=1)
    assert torch.equal(covered.permute(0, 2, 3, 1)[hole], GREY.expand(int(hole.sum()), 3))


def test_a_recipe_is_an_augmentation() -> None:
    recipe = Recipe(jpeg=0.25, greyscale=0.1, rescale=0.2)
    same = Augmentation(4, flip=True, cutout=8, jpeg=0.25, greyscale=0.1, rescale=0.2)
    drawn, expected = (draw_augmentation(each, 40, 16, seed=0, epoch=0) for each in (recipe, same))
    assert torch.equal(augment(images(40), drawn, recipe), augment(images(40), expected, same))
