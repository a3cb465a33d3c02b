"""Folders that are splits, in a folder of pictures: what they are called, and when that cannot be told."""

import logging
from pathlib import Path

import pytest

from model.data import DataError
from model.folder import load_folder
from tests.pictures import KINDS, write_folder
from tests.unit.model.test_folder import both_splits


def test_train_and_test_folders_are_taken_as_the_split(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "test", 3, kinds=("grass", "stripes"))
    train, test = both_splits(tmp_path)
    assert (len(train), len(test)) == (15, 6)
    assert train.classes == test.classes == KINDS
    assert test.labels.bincount(minlength=3).tolist() == [0, 3, 3]


def test_val_serves_for_test_unless_there_is_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "val", 2)
    assert (load_folder(tmp_path, train=False).split, len(load_folder(tmp_path, train=False))) == ("val", 6)
    write_folder(tmp_path / "test", 3)
    caplog.set_level(logging.INFO)
    assert [len(part) for part in both_splits(tmp_path)] == [15, 9]
    assert "'val' is not used" in caplog.text


@pytest.mark.parametrize("names", [("train", "valid"), ("Train", "Test"), ("training", "validation"), ("TRAIN", "val")])
def test_splits_have_other_names_too(tmp_path: Path, names: tuple[str, str]) -> None:
    for name, each in zip(names, (5, 2), strict=True):
        write_folder(tmp_path / name, each)
    assert [len(part) for part in both_splits(tmp_path)] == [15, 6]
    assert both_splits(tmp_path)[0].classes == KINDS


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("train", "test", "extra"), "holds folders for test and train, and also 'extra', which is none"),
        (("train", "val", "valid"), "holds more than one folder for val: val and valid"),
    ],
)
def test_splits_that_cannot_be_told_are_refused(tmp_path: Path, names: tuple[str, ...], message: str) -> None:
    for name in names:
        write_folder(tmp_path / name, 2)
    with pytest.raises(DataError, match=message):
        load_folder(tmp_path, train=True)


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    for kind, name in zip(KINDS, ("bus", "train", "tram"), strict=True):
        (tmp_path / kind).rename(tmp_path / name)
    assert load_folder(tmp_path, train=True).classes == ("bus", "train", "tram")


def test_a_class_that_only_the_test_folder_has_is_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 2, kinds=("disc", "grass"))
    write_folder(tmp_path / "test", 2)
    with pytest.raises(DataError, match="a class that the training folder does not have: 'stripes'"):
        load_folder(tmp_path, train=False)
