"""Folders that are not laid out as they should be: what is taken for a class, and what for none."""

import logging
from pathlib import Path

import pytest

from model.data import DataError, Split
from model.image_folder.dataset import load_folder
from tests.conftest import encode, noise
from tests.pictures import write_folder


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = (record for record in caplog.records if record.name == "model.image_folder.layout")
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


def test_a_folder_around_the_folder_of_classes_is_pointed_at(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", 1)
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path, split="train")
    hint = f"if the classes are the 3 folders in it, give folder:{tmp_path}/pictures"
    assert str(caught.value).endswith(f"two at least: there are 1: {hint}")


@pytest.mark.parametrize("outer", [("batch1", "batch2"), ("training_set", "test_set")])
def test_classes_that_each_hold_the_same_folders_are_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, outer: tuple[str, str]
) -> None:
    for number, name in enumerate(outer):
        write_folder(tmp_path / name, 10, kinds=("disc", "grass"), first=10 * number)
    load_folder(tmp_path, split="train")
    first, second = sorted(outer)
    said = f"the classes are '{first}', '{second}', each of which holds folders 'disc', 'grass': if those are the "
    assert any(line.startswith(said) for line in warnings(caplog))


def test_folders_within_classes_are_not_doubted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number, name in enumerate(("a", "b")):
        write_folder(tmp_path / name, 10, kinds=("disc", ("grass", "stripes")[number]), first=10 * number)
    load_folder(tmp_path, split="train")
    assert warnings(caplog) == []


def test_classes_that_differ_in_capital_letters_alone_are_doubted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("Disc", "disc", "grass")):
        write_folder(tmp_path / "x", 20, kinds=(name.lower(),), first=20 * number)
        (tmp_path / "x" / name.lower()).rename(tmp_path / name)
    (tmp_path / "x").rmdir()
    assert load_folder(tmp_path, split="train").classes == ("Disc", "disc", "grass")
    said = "classes that differ in capital letters alone are classes of their own: 'Disc', 'disc'"
    assert warnings(caplog) == [f"{tmp_path}: {said}"]


@pytest.mark.parametrize("split", [None, "train"])
def test_pictures_beside_the_class_folders_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, split: str | None
) -> None:
    root = write_folder(tmp_path / split if split else tmp_path, 20)
    if split:
        write_folder(tmp_path / "test", 2, first=20)
    for number in range(7):
        (root / f"{number}.JPG").write_bytes(encode(noise(seed=number), "JPEG"))
    (root / "README.txt").touch()
    (root / ".hidden.png").touch()
    load_folder(tmp_path, split="train")
    at = "train/" if split else ""
    names = ", ".join(f"'{at}{number}.JPG'" for number in range(5))
    assert warnings(caplog) == [f"{tmp_path}: 7 picture(s) in no class folder are not used: {names} and 2 more"]


@pytest.mark.parametrize("split", ["all", "test"])
def test_a_class_without_new_pictures_is_an_empty_folder_to_evaluate_and_none_to_train(
    tmp_path: Path, split: Split
) -> None:
    write_folder(tmp_path, 20, kinds=("disc", "grass"))
    (tmp_path / "stripes").mkdir()
    dataset = load_folder(tmp_path, split=split)
    assert dataset.classes == ("disc", "grass", "stripes")
    assert dataset.labels.bincount(minlength=3)[2] == 0
    with pytest.raises(DataError, match=r"class folder .*stripes holds no file"):
        load_folder(tmp_path, split="train")


def test_more_classes_than_a_checkpoint_has_are_refused_before_a_picture_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path, 1)
    monkeypatch.setattr("model.image_folder.files.read_picture", lambda path: pytest.fail(f"read {path}"))
    monkeypatch.setattr("model.image_folder.layout.MAX_CLASSES", 2)
    with pytest.raises(DataError) as caught:
        load_folder(tmp_path, split="train")
    assert str(caught.value) == f"{tmp_path} holds 3 sub-folders, and a checkpoint has 2 classes at most"
