"""What is said of a folder's pictures before they are trained on: how many there are, how large, what was left out."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.settings import Settings
from model.data import DataError, Dataset, Split
from model.image_folder.dataset import load_folder
from model.image_folder.notices import tell_of_held_out_pictures
from model.pictures.codec import open_picture, picture_pixels
from model.pictures.files import PictureError
from tests.bombs import png
from tests.conftest import encode, noise
from tests.pictures import KINDS, write_folder

HEIC = b"\0\0\0\x18ftypheic" + bytes(40)


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")


def test_each_class_is_counted_and_one_of_few_pictures_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, 20)
    dataset = load_folder(tmp_path, split="train")
    counts = [(dataset.labels == label).sum().item() for label in range(3)]
    assert ", ".join(f"{name} {count}" for name, count in zip(KINDS, counts, strict=True)) in caplog.text
    assert "fewer than 10" not in caplog.text
    for file in sorted((tmp_path / "grass").iterdir())[:15]:
        file.unlink()
    load_folder(tmp_path, split="train")
    assert "fewer than 10 pictures to train on: grass" in caplog.text


def test_of_photos_is_said_that_most_of_them_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(encode(noise(300, 200, seed=10 * ord(name) + number)))
    load_folder(tmp_path, split="train")
    assert "pictures of some 200 pixels are brought to 32: a larger --image-size keeps more of them" in caplog.text
    caplog.clear()
    load_folder(tmp_path, split="train", image_size=64)
    assert "--image-size" not in caplog.text


def test_a_phones_heic_is_called_so_and_reasons_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PictureError, match="HEIC or AVIF, which is not read here"):
        open_picture(HEIC, 1 << 20)
    write_folder(tmp_path, 12)
    for number in range(30):
        (tmp_path / "disc" / f"IMG_{number}.heic").write_bytes(HEIC + bytes([number]))
    (tmp_path / "grass" / "cut.jpg").write_bytes(encode(noise(), "JPEG")[:10])
    load_folder(tmp_path, split="train")
    assert "of these: 30 HEIC or AVIF" in caplog.text
    assert "; 1 " in caplog.text


def test_a_class_copied_whole_is_one_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, 30, kinds=("disc", "grass"))
    shutil.copytree(tmp_path / "disc", tmp_path / "discs")
    with pytest.raises(DataError, match=r"class 'disc' of .* has no picture to train on"):
        load_folder(tmp_path, split="train")
    assert caplog.messages[-1] == "of these: 30 of two classes, of which neither is used"


def photo(seed: int) -> Image.Image:
    return noise(6, 6, seed=seed).resize((60, 60), Image.Resampling.BICUBIC)


def test_test_pictures_that_look_like_training_pictures_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for split, first in (("train", 0), ("test", 100)):
        for name in ("a", "b"):
            (tmp_path / split / name).mkdir(parents=True)
            for number in range(first, first + 3):
                (tmp_path / split / name / f"{number}.png").write_bytes(encode(photo(number + 10 * (name == "b"))))
    load_folder(tmp_path, split="train")
    assert "look like" not in caplog.text
    (tmp_path / "test" / "a" / "anew.jpg").write_bytes(encode(photo(1), "JPEG"))
    load_folder(tmp_path, split="train")
    note = "look like training pictures, so the test says more than it should: 'test/a/anew.jpg' like 'train/a/1.png'"
    assert caplog.messages[-1] == f"{tmp_path}: 1 test picture(s) {note}"


@pytest.mark.parametrize(("copied", "told"), [(0, True), (9, False)])
def test_held_out_pictures_that_look_like_ones_that_are_trained_on_are_named(
    caplog: pytest.LogCaptureFixture, copied: int, told: bool
) -> None:
    """Of those in the order of their digests, the first of each class are held out."""
    images = torch.stack([torch.from_numpy(picture_pixels(photo(seed), 32)) for seed in range(24)])
    images[5] = (images[copied].int() + torch.randint(-3, 4, images[0].shape)).clamp(0, 255).to(torch.uint8)
    paths = tuple(f"/pictures/train/{'ab'[number // 12]}/{number}.png" for number in range(24))
    dataset = Dataset("toy", "train", images, torch.arange(24) // 12, ("a", "b"), in_digest_order=True, paths=paths)
    tell_of_held_out_pictures(dataset, 4, fitted=True)
    note = "look like ones that are trained on, so held-out figures and calibration say more than they should"
    said = f"/pictures/train: 1 held-out picture(s) {note}: 'a/0.png' like 'a/5.png'"
    assert caplog.messages == [said] * told
    caplog.clear()
    tell_of_held_out_pictures(dataset, 4, fitted=False)
    assert caplog.messages == [said.replace(" and calibration", "")] * told


def test_of_held_out_images_without_files_or_of_none_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    images = torch.from_numpy(picture_pixels(photo(0), 32)).expand(8, -1, -1, -1)
    dataset = Dataset("toy", "train", images, torch.arange(8) % 2, ("a", "b"))
    tell_of_held_out_pictures(dataset, 4, fitted=True)
    tell_of_held_out_pictures(replace(dataset, paths=tuple(f"/a/{number}" for number in range(8))), 0, fitted=True)
    assert caplog.messages == []


def test_that_of_very_many_test_pictures_a_part_was_compared_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "test", 2, first=3)
    load_folder(tmp_path, split="train")
    assert "were compared" not in caplog.text
    monkeypatch.setattr("model.image_folder.near_duplicates.MAX_PAIRS", 9 * 4)
    load_folder(tmp_path, split="train")
    assert "4 of 6 test pictures were compared with all training pictures" in caplog.text


def test_that_nothing_is_kept_for_the_test_is_said_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, 1)
    load_folder(tmp_path, split="train")
    assert "no picture is kept for the test: add pictures, or make sub-folders 'train' and 'test'" in caplog.text


def test_a_class_without_a_test_picture_is_named_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "test", 2, kinds=("disc", "stripes"), first=3)
    load_folder(tmp_path, split="train")
    assert "no test picture of 'grass': add pictures to class folders in 'test'" in caplog.text
    caplog.clear()
    write_folder(tmp_path / "test", 1, kinds=("grass",), first=3)
    load_folder(tmp_path, split="train")
    assert "no test picture" not in caplog.text


def test_pictures_that_the_service_would_refuse_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 3)
    (tmp_path / "test").mkdir()
    load_folder(tmp_path, split="train")
    assert "would refuse" not in caplog.text
    largest = Settings().max_pixels
    for name, width in (("fits", largest // 4096), ("too large", largest // 4096 + 1)):
        (tmp_path / "train" / "disc" / f"{name}.png").write_bytes(png(width, 4096, bits=1, colours=0))
    load_folder(tmp_path, split="train")
    note = f"more than {largest} pixels, unless RESNET_MAX_PIXELS is raised"
    assert f"the service would refuse 1 of the pictures: {note}" in caplog.text


@pytest.mark.parametrize(("split", "count"), [("train", 1), ("test", 2), ("all", 3)])
def test_of_the_split_that_is_read_those_are_counted_that_the_service_would_refuse(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, split: Split, count: int
) -> None:
    """Scores count them all the same, and the service's answers to one's own pictures are others."""
    monkeypatch.setattr("model.image_folder.notices.SERVED_PIXELS", 200 * 200)
    for name, first, larger in (("train", 0, 1), ("test", 4, 2)):
        write_folder(tmp_path / name, 3, first=first)
        for number in range(larger):
            (tmp_path / name / "disc" / f"large{number}.png").write_bytes(encode(noise(201, 200, seed=first + number)))
    load_folder(tmp_path, split=split)
    assert sum(f"the service would refuse {count} of the pictures" in message for message in caplog.messages) == 1


def test_a_bad_test_picture_is_named_before_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "test", 2, first=3)
    (tmp_path / "test" / "disc" / "cut.png").write_bytes(encode(noise(64, 64))[:5000])
    load_folder(tmp_path, split="train")
    assert "skipped 'test/disc/cut.png': damaged or cut short" in caplog.text


def test_uneven_classes_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, count in (("a", 9), ("b", 1)):
        (tmp_path / "train" / name).mkdir(parents=True)
        for number in range(count):
            (tmp_path / "train" / name / f"{number}.png").write_bytes(encode(noise(seed=number + 100 * ord(name))))
    (tmp_path / "test").mkdir()
    load_folder(tmp_path, split="train")
    assert "times as many" not in caplog.text
    (tmp_path / "train" / "a" / "more.png").write_bytes(encode(noise(seed=50)))
    load_folder(tmp_path, split="train")
    assert "10 times as many pictures of a as of b" in caplog.text
    assert "balanced accuracy does; more pictures of b help, or else fewer of a" in caplog.text


def test_pictures_of_which_the_crop_leaves_less_than_half_are_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (tmp_path / "test").mkdir()
    for name, width in (("a", 32), ("b", 64)):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "picture.png").write_bytes(encode(noise(width, 32)))
    load_folder(tmp_path, split="train")
    assert "as long as wide" not in caplog.text
    for name, (width, height) in {"wide": (65, 32), "tall": (32, 65)}.items():
        (tmp_path / "train" / "a" / f"{name}.png").write_bytes(encode(noise(width, height)))
    load_folder(tmp_path, split="train")
    note = "only the square in their middle is seen, here and in the service"
    assert f"2 training picture(s) are more than 2 times as long as wide: {note}" in caplog.text


def test_pictures_that_show_nothing_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 3)
    (tmp_path / "test").mkdir()
    load_folder(tmp_path, split="train")
    assert "next to nothing" not in caplog.text
    dim = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32)  # of 65,536 levels
    (tmp_path / "train" / "disc" / "dim.png").write_bytes(encode(Image.fromarray(dim)))
    load_folder(tmp_path, split="train")
    assert "1 picture(s) show next to nothing, such as 'train/disc/dim.png'" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "@eaDir",
        "$RECYCLE.BIN",
        "$Recycle.Bin",
        "System Volume Information",
        "lost+found",
        "#recycle",
        "#snapshot",
        "@Recycle",
    ],
)
def test_what_systems_put_onto_drives_and_shares_holds_no_pictures_and_is_no_class(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    caplog.set_level("INFO")
    write_folder(tmp_path, 12)
    for place in (tmp_path, tmp_path / "disc"):
        (place / name).mkdir()
        (place / name / "SYNOPHOTO_THUMB.jpg").write_bytes(encode(noise(), "JPEG"))
    dataset = load_folder(tmp_path, split="all")
    assert dataset.classes == KINDS
    assert len(dataset) == 36
    load_folder(tmp_path, split="train")
    assert f"{tmp_path}: passed over, as folders that systems make: {name!r}" in caplog.text


def test_without_a_terminal_the_log_says_how_far_reading_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    write_folder(tmp_path, 3)
    load_folder(tmp_path, split="all")
    assert " of 9 files" not in caplog.text
    monkeypatch.setattr("model.image_folder.files.TELL_EVERY_S", 0.0)
    load_folder(tmp_path, split="all")
    for what in ("reading", "decoding"):
        assert f"{what}: 4 of 9 files" in caplog.text
