"""A folder `val` beside `train`: what is tested on, or held out, and when it is neither."""

import logging
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.data import DataError, NoTestSet, Split, hold_out
from model.image_folder.dataset import load_folder
from model.train import Trainer
from model.training.recipe import PRESETS
from tests.conftest import encode, noise
from tests.pictures import write_folder
from tests.unit.model.image_folder.folders import images_of


@pytest.fixture(autouse=True)
def heard(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """Five pictures of each class to train on, two of `val`, three to test on."""
    for name, first, end in (("train", 0, 5), ("val", 5, 7), ("test", 7, 10)):
        write_folder(tmp_path / name, end - first, first=first)
    return tmp_path


def write_loose(folder: Path, count: int) -> None:
    """Write pictures without classes, as in the test part of a competition."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number}.png").write_bytes(encode(noise(seed=number)))


def test_val_is_the_test_part_where_there_is_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "Valid", 2, first=5)
    train = load_folder(tmp_path, split="train", with_val=True)
    assert f"{tmp_path}: 'Valid' is the test part: there is no other one" in caplog.messages
    assert (len(train), train.held_out) == (15, 0)
    test = load_folder(tmp_path, split="test")
    assert (test.split, len(test)) == ("val", 6)


@pytest.mark.parametrize("loose", [0, 4])
def test_a_test_folder_without_classes_does_not_take_vals_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, loose: int
) -> None:
    write_folder(tmp_path / "train", 5)
    write_folder(tmp_path / "val", 2, first=5)
    write_loose(tmp_path / "test", loose)
    train = load_folder(tmp_path, split="train", with_val=True)
    said = "'val' is the test part: 'test' has no class folders with pictures"
    assert f"{tmp_path}: {said}" in caplog.messages
    test = load_folder(tmp_path, split="test")
    assert (len(train), train.held_out, test.split, len(test)) == (15, 0, "val", 6)


def test_where_nothing_is_labelled_to_test_on_the_advice_fits_the_folders(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path / "train", 5)
    write_loose(tmp_path / "Test", 4)
    write_loose(tmp_path / "val", 0)
    train = load_folder(tmp_path, split="train", with_val=True)
    assert (len(train), train.held_out) == (15, 0)
    assert f"{tmp_path}: no picture is kept for the test: add pictures to class folders in 'Test'" in caplog.messages
    said = "'val' is not used: it has no pictures in class folders that can be held out"
    assert f"{tmp_path}: {said}" in caplog.messages
    with pytest.raises(NoTestSet, match=r"has no picture to test on: add pictures to class folders in 'Test'$"):
        load_folder(tmp_path, split="test")


def test_beside_train_and_test_val_is_what_is_held_out(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, test = load_folder(three, split="train", with_val=False), load_folder(three, split="test")
    assert (len(plain), plain.held_out, test.split, len(test)) == (15, 0, "test", 9)
    assert f"{three}: 'val' is not used, since what is held out is taken from 'train'" in caplog.messages
    caplog.clear()
    dataset = load_folder(three, split="train", with_val=True)
    note = "the calibration is fitted on them, and recipes are compared by them"
    assert f"{three}: 6 pictures of 'val' are held out: {note}" in caplog.messages
    assert f"{three}: 3 classes, 15 pictures of the train split" in caplog.messages
    assert (len(dataset), dataset.held_out) == (21, 6)
    assert (dataset.mean, dataset.std) == (plain.mean, plain.std)
    training, held = hold_out(dataset, 6)
    assert training.fingerprint() == plain.fingerprint()
    assert all(Path(path).is_relative_to(three / "val") for path in held.paths or ())
    assert held.labels.bincount().tolist() == [2, 2, 2]
    assert not images_of(held) & (images_of(training) | images_of(test))


def test_no_picture_is_in_two_of_the_three_folders(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    def copy(source: str, target: str) -> None:
        (three / target).write_bytes((three / source).read_bytes())

    copy("val/disc/005.jpg", "train/disc/in val")
    copy("test/disc/007.webp", "val/disc/in test")
    copy("test/grass/008.bmp", "train/grass/in test")
    copy("val/grass/006.png", "test/disc/of two classes")
    dataset = load_folder(three, split="train", with_val=True)
    assert (len(dataset), dataset.held_out) == (20, 5)
    assert dataset.labels[15:].bincount().tolist() == [2, 1, 2]
    for said in (
        "1 training picture(s) are in the test folder, too, and are not trained on",
        "1 training picture(s) are in the val folder, too, and are not trained on",
        "1 val picture(s) are in the test folder, too, and are not held out",
    ):
        assert said in caplog.messages
    assert load_folder(three, split="test").labels.bincount().tolist() == [3, 3, 3]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_that_only_val_has_is_refused_before_training(three: Path, split: Split) -> None:
    (three / "val" / "grass").rename(three / "val" / "star")
    with pytest.raises(DataError, match="val has a class that the training folder does not have: 'star'"):
        load_folder(three, split=split)


def test_val_counts_when_it_is_known_whether_all_fits(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    monkeypatch.setattr("model.image_folder.dataset.check_memory", lambda count, _size, **_: counts.append(count))
    load_folder(three, split="train", with_val=True)
    assert counts == [21, 9] * 2  # before a file is read, and when it is known which are pictures


@pytest.mark.usefixtures("narrow_stages")
def test_a_checkpoint_is_calibrated_and_measured_on_val(three: Path, tmp_path: Path) -> None:
    dataset = load_folder(three, split="train", image_size=16, with_val=True)
    with pytest.raises(DataError, match=r"cannot hold out 3 images: .* has 6 for that"):
        hold_out(dataset, 3)
    given = {"phases": ((8, 1), (16, 1)), "hold_out": dataset.held_out}
    recipe = PRESETS["cpu"].for_data(16, len(dataset), 3, given)
    trainer = Trainer(recipe, dataset, tmp_path / "run", device=torch.device("cpu"), consume=True)
    metadata = checkpoint.load(trainer.run()).metadata
    assert (metadata.dataset["training_images"], metadata.dataset["held_out_images"]) == (15, 6)
    assert metadata.measured[0]["images"] == 6
    assert {Path(path).parts[len(three.parts)] for path in trainer.held.paths or ()} == {"val"}


def test_nothing_is_said_of_what_is_held_out_where_nothing_is_trained(
    three: Path, caplog: pytest.LogCaptureFixture
) -> None:
    load_folder(three, split="train")
    assert "'val'" not in caplog.text
