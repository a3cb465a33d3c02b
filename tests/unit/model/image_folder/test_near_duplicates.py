from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from model.data import load_cifar10
from model.image_folder import near_duplicates as module
from model.image_folder.near_duplicates import near_duplicates, thumbnails
from model.pictures.codec import open_picture, picture_pixels
from tests.conftest import encode, noise


def scenes(count: int, seed: int = 0) -> list[Image.Image]:
    """Pictures of a few large shapes, as photos have them."""
    return [
        noise(6, 6, seed=1000 * seed + number).resize((240, 240), Image.Resampling.BICUBIC) for number in range(count)
    ]


def seen(pictures: list[Image.Image], image_format: str = "PNG", **options: object) -> Tensor:
    files = [encode(picture, image_format, **options) for picture in pictures]
    return thumbnails(torch.stack([torch.from_numpy(picture_pixels(open_picture(one, 1 << 20), 32)) for one in files]))


def test_pictures_saved_anew_are_known_again_and_others_are_not() -> None:
    pictures = scenes(20)
    smaller = [picture.resize((100, 100)) for picture in pictures[3:5]]
    tested = torch.cat([seen(smaller, "JPEG", quality=40), seen(scenes(20, seed=1))])
    assert near_duplicates(seen(pictures), tested) == [(0, 3), (1, 4)]


def with_a_thing(number: int, background: Image.Image, side: int = 60) -> Image.Image:
    picture = background.copy()
    picture.paste(noise(30, 30, seed=number).resize((side, side)), (10 + 20 * (number % 9), 5 * number))
    return picture


@pytest.mark.parametrize("background", [Image.new("RGB", (240, 240), "skyblue"), scenes(1)[0]], ids=["sky", "camera"])
def test_small_things_before_one_background_are_not_alike(background: Image.Image) -> None:
    pictures = [with_a_thing(number, background) for number in range(30)]
    assert near_duplicates(seen(pictures[:20]), seen(pictures[20:])) == []


def test_nor_are_they_where_other_pictures_have_other_backgrounds() -> None:
    """These are far from the mean picture all together."""
    bright = [with_a_thing(number, Image.new("RGB", (240, 240), "white"), 24) for number in range(30)]
    assert near_duplicates(seen(scenes(40) + bright[:20]), seen(bright[20:])) == []


def test_of_what_has_no_contrast_nothing_is_said() -> None:
    flat = torch.full((4, 3, 32, 32), 200, dtype=torch.uint8)
    assert near_duplicates(thumbnails(flat), thumbnails(flat)) == []


def test_of_very_many_an_even_sample_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    thumbs = seen(scenes(20))
    assert near_duplicates(thumbs, thumbs) == [(number, number) for number in range(20)]
    monkeypatch.setattr(module, "MAX_PAIRS", 20 * 7)
    assert [i for i, _ in near_duplicates(thumbs, thumbs)] == [0, 2, 5, 8, 11, 14, 17]


@pytest.mark.parametrize(
    ("trained", "tested", "count"), [(10, 0, 0), (10, 4, 4), (10, 12, 10), (100, 3, 1), (999, 3, 1)]
)
def test_one_at_least_is_looked_at_and_none_twice(
    monkeypatch: pytest.MonkeyPatch, trained: int, tested: int, count: int
) -> None:
    monkeypatch.setattr(module, "MAX_PAIRS", 100)
    chosen = module.compared(trained, tested).tolist()
    assert len(set(chosen)) == len(chosen) == count
    assert all(0 <= one < tested for one in chosen)


@pytest.mark.data
def test_on_cifar10_few_are_alike_and_what_was_saved_anew_is_known_again(
    cifar10_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figures that model/image_folder/near_duplicates.py has, with some room for the last bits of sums."""
    monkeypatch.setattr(module, "MAX_PAIRS", 10**9)
    trained, tested = (load_cifar10(cifar10_root, train=train).images for train in (True, False))
    others = thumbnails(trained)
    assert len(near_duplicates(others, thumbnails(tested))) == pytest.approx(38, abs=3)
    enlarged = [Image.fromarray(one.permute(1, 2, 0).numpy()).resize((256, 256)) for one in tested[:500]]
    known = torch.cat([seen(enlarged), others[:5000]])
    again = near_duplicates(known, seen(enlarged, "JPEG", quality=30))
    assert sum(i == j for i, j in again) == pytest.approx(499, abs=2)
