"""Folders that are splits, in a folder of pictures: what they are called, and when that cannot be told."""

import hashlib
import logging
import unicodedata
from pathlib import Path

import pytest

from model.data import DataError, Split
from model.image_folder.dataset import TEST_SHARE, load_folder
from model.pictures.files import read_picture
from tests.conftest import encode, noise
from tests.pictures import KINDS, write_folder
from tests.unit.model.image_folder.folders import both_splits, images_of


def test_train_and_test_folders_are_taken_as_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 3, kinds=("grass", "stripes"), first=5)
    train, test = both_splits(tmp_path)
    assert (len(train), len(test)) == (15, 6)
    assert train.classes == test.classes == KINDS
    assert test.labels.bincount(minlength=3).tolist() == [0, 3, 3]


@pytest.mark.parametrize("names", [("train", "valid"), ("Train", "Test"), ("training", "validation"), ("TRAIN", "val")])
def test_splits_have_other_names_too(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, each, first in zip(names, (5, 2), (0, 5), strict=True):
        write_folder(tmp_path / name, each, first=first)
    assert [len(part) for part in both_splits(tmp_path)] == [15, 6]
    assert both_splits(tmp_path)[0].classes == KINDS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test", "extra"), "holds folders for test and train, and also 'extra', which is none: if they are "),
        (("train", "val", "valid"), "holds more than one folder for val: val and valid"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write_folder(tmp_path / name, 2)
    with pytest.raises(DataError, match=message):
        load_folder(tmp_path, split="train")


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    for kind, name in zip(KINDS, ("bus", "train", "tram"), strict=True):
        (tmp_path / kind).rename(tmp_path / name)
    assert load_folder(tmp_path, split="train").classes == ("bus", "train", "tram")


@pytest.mark.parametrize("name", ["train", "Train", "training", "test", "VAL"])
@pytest.mark.parametrize("split", ["train", "test", "all"])
def test_a_split_beside_a_folder_that_is_none_is_no_class(tmp_path: Path, name: str, split: Split) -> None:
    write_folder(tmp_path / name, 3, kinds=("disc", "grass"))
    write_folder(tmp_path, 3, kinds=("stripes",))
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path, split=split)
    assert str(caught.value).startswith(
        f"{tmp_path}/{name} would be one class beside 'stripes', and it holds folders of pictures ('disc', 'grass'): "
        f"if those are the classes, give folder:{tmp_path}/{name}, "
    )
    assert load_folder(tmp_path / name, split="train").classes == ("disc", "grass")


def test_a_class_that_is_called_as_a_split_may_hold_one_folder_or_hollow_ones(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    (tmp_path / "disc").rename(tmp_path / "train")
    write_folder(tmp_path / "train", 2, kinds=("grass",), first=3)
    (tmp_path / "train" / "stripes").mkdir()
    (tmp_path / "train" / "stripes" / "notes.txt").touch()
    assert load_folder(tmp_path, split="train").classes == ("grass", "stripes", "train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_only_the_test_folder_has_is_refused_before_training(tmp_path: Path, split: Split) -> None:
    write_folder(tmp_path / "train", 2, kinds=("disc", "grass"))
    write_folder(tmp_path / "test", 2)
    with pytest.raises(DataError, match="a class that the training folder does not have: 'stripes'"):
        load_folder(tmp_path, split=split)


def test_what_is_in_both_folders_is_not_trained_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 2, first=3)
    train, test = both_splits(tmp_path)
    assert (len(train), len(test)) == (9, 6)
    assert not {image.numpy().tobytes() for image in train.images} & {one.numpy().tobytes() for one in test.images}
    assert "6 training picture(s) are in the test folder, too, and are not trained on" in caplog.text


@pytest.mark.parametrize("twice", [False, True])
def test_what_is_of_two_classes_in_the_two_folders_is_in_neither_split(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, twice: bool
) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 2, first=5)
    file = (tmp_path / "train" / "disc" / "003.bmp").read_bytes()
    (tmp_path / "test" / "grass" / "a disc").write_bytes(file)
    if twice:
        (tmp_path / "train" / "grass" / "a disc").write_bytes(file)
    said = "'test/grass/a disc': of two classes, of which neither is used: the same file as 'train/disc/003.bmp'"
    train = load_folder(tmp_path, split="train")
    assert f"skipped {said}" in caplog.messages
    assert train.labels.bincount().tolist() == [4, 5, 5]
    caplog.clear()
    test = load_folder(tmp_path, split="test")
    assert f"skipped {said}" in caplog.messages
    assert test.labels.bincount().tolist() == [2, 2, 2]
    assert load_folder(tmp_path, split="all").labels.bincount().tolist() == [6, 7, 7]


def test_to_test_no_more_training_files_are_read_than_may_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 2, first=5)
    for picture in (tmp_path / "train" / "disc").iterdir():
        picture.write_bytes(picture.read_bytes() + b"longer")
    same = tmp_path / "train" / "grass" / "003.bmp"
    (tmp_path / "test" / "grass" / "a copy").write_bytes(same.read_bytes())
    read: list[Path] = []
    monkeypatch.setattr("model.image_folder.files.read_picture", lambda path: read.append(path) or read_picture(path))
    load_folder(tmp_path, split="test")
    assert same in read
    assert not [path for path in read if path.is_relative_to(tmp_path / "train" / "disc")]


@pytest.mark.parametrize("split", ["folder", "share"])
def test_a_bad_test_picture_is_fatal_before_training_if_asked_for(tmp_path: Path, split: str) -> None:
    """It begins as a picture does, and cannot be decoded."""
    train, test = tmp_path / "train", tmp_path / "test"
    if split == "folder":
        write_folder(train, 3)
        write_folder(test, 2, first=3)
    else:
        train = test = write_folder(tmp_path / "all", 30)
    whole = encode(noise(64, 64, seed=3))
    for length in range(len(whole) // 2, len(whole) - 20):  # of many cuts some have a digest of the test share
        data = whole[:length]
        if split == "folder" or hashlib.sha256(data).digest()[0] < TEST_SHARE * 255:
            break
    (test / "disc" / "cut.png").write_bytes(data)
    root = tmp_path if split == "folder" else train
    assert load_folder(root, split="train").classes == KINDS
    with pytest.raises(DataError, match=r"cut\.png': damaged or cut short"):
        load_folder(root, split="train", on_bad_image="fail")


def test_names_of_classes_are_the_same_however_their_letters_are_composed(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 3, kinds=("disc", "grass"))
    write_folder(tmp_path / "test", 2, kinds=("disc", "grass"), first=3)
    for folder, form in (("train", "NFC"), ("test", "NFD")):
        (tmp_path / folder / "disc").rename(tmp_path / folder / unicodedata.normalize(form, "caf\u00e9"))
    train, test = both_splits(tmp_path)
    assert train.classes == test.classes == ("caf\u00e9", "grass")
    assert test.labels.bincount().tolist() == [2, 2]
    (tmp_path / "train" / unicodedata.normalize("NFD", "caf\u00e9")).mkdir()
    with pytest.raises(DataError, match="two folders of the class 'caf\u00e9'"):
        load_folder(tmp_path, split="train")


def test_what_a_macs_archive_holds_besides_is_no_class(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    (tmp_path / "__MACOSX").mkdir()
    assert load_folder(tmp_path, split="train").classes == KINDS


def test_one_split_alone_is_pointed_at(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 2)
    with pytest.raises(DataError, match=f"give folder:{tmp_path}/train"):
        load_folder(tmp_path, split="train")


def test_all_pictures_of_class_folders_are_both_shares(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    train, test = both_splits(write_folder(tmp_path, 20))
    share = "the test share of a folder without train and test; resnet evaluate --split all takes all"
    assert f"{tmp_path}: {len(test)} of 60 pictures: {share}" in caplog.messages
    caplog.clear()
    everything = load_folder(tmp_path, split="all")
    assert (everything.split, len(everything)) == ("all", 60)
    assert images_of(everything) == images_of(train) | images_of(test)
    assert everything.labels.bincount().tolist() == [20, 20, 20]
    assert caplog.messages == [f"{tmp_path}: 3 classes, 60 pictures"]


def test_all_pictures_of_folders_that_are_splits_are_those_of_all_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 7, kinds=("grass",))  # five of them are in train, too
    write_folder(tmp_path / "val", 2, kinds=("disc",))
    everything = load_folder(tmp_path, split="all")
    assert (everything.split, everything.labels.bincount().tolist()) == ("all", [5, 7, 5])
    assert "'val' is not used" not in caplog.text
