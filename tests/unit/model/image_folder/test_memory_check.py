"""Whether a folder's pictures fit into memory: which files count, and what is advised."""

from pathlib import Path

import pytest

from model.data import DataError, Split
from model.image_folder.dataset import load_folder
from model.image_folder.memory_check import BESIDES_PIXELS, MEMORY_SHARE
from tests.pictures import KINDS, write_folder


@pytest.fixture(params=[False, True], ids=["classes", "splits"])
def pictures(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Write a folder of 36 pictures to train on or to test on."""
    if request.param:
        write_folder(tmp_path / "test", 2)
        write_folder(tmp_path / "train", 12, first=2)
    else:
        write_folder(tmp_path, 12)
    return tmp_path


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def room_for(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let there be memory for so many pictures of 32 x 32 pixels."""
    available = count * (3 * 32**2 + BESIDES_PIXELS) / MEMORY_SHARE + 1
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: available)


def test_files_beside_the_pictures_do_not_count(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in files_below(pictures):
        path.with_suffix(".xml").write_text("<annotation/>")
    room_for(36, monkeypatch)
    load_folder(pictures, split="train")


def test_pictures_that_are_called_otherwise_count_when_they_are_known(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in files_below(pictures):
        path.rename(path.with_suffix(".photo"))
    monkeypatch.setattr("model.image_folder.dataset.decode", lambda *_: pytest.fail("decoded"))
    room_for(35, monkeypatch)
    with pytest.raises(DataError, match=r"^36 pictures of 32x32 take"):
        load_folder(pictures, split="train")


@pytest.mark.parametrize(("split", "advised"), [("train", True), ("test", False), ("all", False)])
def test_another_size_is_advised_where_it_can_be_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: Split, advised: bool
) -> None:
    """What is measured on a network is of its size."""
    for name in ("train", "test"):
        write_folder(tmp_path / name, 20, kinds=KINDS)
    room_for(40, monkeypatch)
    with pytest.raises(DataError, match=r"fewer pictures$") as caught:
        load_folder(tmp_path, split=split)
    assert ("--image-size" in str(caught.value)) == advised
