import hashlib
import json

import torch
from torch import Tensor

from model.recipe import PRESETS, Augmentation, Recipe
from model.sent import as_sent, draw_as_sent
from model.transforms import augment


def images(count: int = 6) -> Tensor:
    """Return smooth, coloured images without randomness, uint8 (N, 3, 16, 16)."""
    values = torch.arange(count * 3 * 16 * 16).view(count, 3, 16, 16)
    return (values * 7 % 256).to(torch.uint8)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def test_without_the_new_changes_a_batch_and_the_draws_are_what_they_were() -> None:
    generator = seeded()
    batch = augment(images(), Augmentation(crop_padding=4, flip=True, cutout=6), generator)
    after = torch.randint(0, 1 << 30, (4,), generator=generator)
    # Taken before `jpeg`, `greyscale` and `rescale` existed.
    digest = hashlib.sha256(batch.contiguous().numpy().tobytes()).hexdigest()
    assert digest.startswith("1f5964f5ce10d2f4")
    assert after.tolist() == [876837974, 511510674, 549339513, 101684586]


def test_the_batch_is_changed_after_the_crop_and_before_the_cutout() -> None:
    sent = Augmentation(crop_padding=4, flip=True, jpeg=0.5, greyscale=0.5, rescale=0.5)
    generator = seeded()
    cropped = augment(images(), Augmentation(crop_padding=4, flip=True), generator)
    expected = as_sent(cropped, *draw_as_sent(6, sent, generator))
    assert torch.equal(augment(images(), sent, seeded()), expected)
    assert not torch.equal(cropped, expected)
    covered = Augmentation(crop_padding=0, flip=False, cutout=16, jpeg=1.0)
    assert int((augment(images(64), covered, seeded()) == 0).all(dim=1).flatten(1).sum(dim=1).min()) >= 8 * 8


def test_recipes_without_the_new_changes_are_written_as_before() -> None:
    # A saved run is gone on from only with an equal recipe.
    for recipe in PRESETS.values():
        assert not {"jpeg", "greyscale", "rescale"} & recipe.to_dict().keys()
    changed = Recipe(jpeg=0.25, greyscale=0.1, rescale=0.2)
    fields = json.loads(json.dumps(changed.to_dict()))
    assert (fields["jpeg"], fields["greyscale"], fields["rescale"]) == (0.25, 0.1, 0.2)
    assert changed.augmentation() == Augmentation(4, flip=True, cutout=8, jpeg=0.25, greyscale=0.1, rescale=0.2)
