"""Files of a folder that cannot be read or decoded: when the rest is trained on, and when nothing is."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from model.data import DataError, Split
from model.image_folder.dataset import load_folder
from model.pictures.files import PictureError, StorageError, read_picture
from tests.conftest import encode, noise
from tests.pictures import write_folder

OF_DISK_OR_SHARE = (errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV, errno.ETIMEDOUT, errno.EUCLEAN)
OF_THE_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
OF_THE_FILE = (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.EISDIR, errno.ELOOP)

Fails = Callable[..., None]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", 12)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Fails:
    """Make methods of a path that is called so fail by an error of that number."""

    def install(name: str, number: int, *methods: str) -> None:
        for method in methods or ("read_bytes", "stat"):
            original = getattr(Path, method)

            def fail(path: Path, *given: object, _original: Callable[..., object] = original, **more: object) -> object:
                if path.name == name:
                    raise OSError(number, os.strerror(number), str(path))
                return _original(path, *given, **more)

            monkeypatch.setattr(Path, method, fail)

    return install


@pytest.mark.parametrize("on_bad_image", ["skip", "fail"])
@pytest.mark.parametrize("number", [*OF_DISK_OR_SHARE, *OF_THE_MACHINE])
def test_where_the_disk_the_share_or_the_machine_fails_nothing_is_trained_on(
    pictures: Path, fails: Fails, number: int, on_bad_image: str
) -> None:
    fails("003.bmp", number, "read_bytes")
    with pytest.raises(DataError) as caught:
        load_folder(pictures, split="train", on_bad_image=on_bad_image)
    whose = "this machine" if number in OF_THE_MACHINE else "the disk or share that it is on"
    why = f"cannot be read: {os.strerror(number)}: {whose} fails, not the file, so it is not left out"
    assert str(caught.value) == f"'disc/003.bmp': {why}"


@pytest.mark.parametrize("number", OF_THE_FILE)
def test_a_file_that_is_itself_to_blame_is_left_out(
    pictures: Path, fails: Fails, number: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = len(load_folder(pictures, split="all"))
    fails("003.bmp", number)  # one of each of three classes
    assert len(load_folder(pictures, split="all")) == before - 3
    assert f"skipped 'disc/003.bmp': cannot be read: {os.strerror(number)}" in caplog.messages


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, StorageError), (errno.EACCES, PictureError)])
def test_for_one_file_alone_both_are_said_of_it(
    pictures: Path, fails: Fails, number: int, kind: type[PictureError]
) -> None:
    fails("003.bmp", number)
    with pytest.raises(PictureError, match=f"^cannot be read: {os.strerror(number)}") as caught:
        read_picture(pictures / "disc" / "003.bmp")
    assert type(caught.value) is kind


@pytest.mark.parametrize("name", ["grass", "deep"])
def test_a_folder_on_a_share_that_is_gone_is_not_left_out(pictures: Path, fails: Fails, name: str) -> None:
    (pictures / "grass" / "deep").mkdir()
    fails(name, errno.ESTALE)
    with pytest.raises(DataError, match=rf"{name}': cannot be read: {os.strerror(errno.ESTALE)}: the disk or share"):
        load_folder(pictures, split="train")


def test_a_folder_that_a_failing_disk_does_not_list_is_not_left_out(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = os.scandir

    def fail(path: str) -> object:
        if str(path).endswith("grass"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(DataError, match=r"^'grass': cannot be read: Input/output error: the disk or share"):
        load_folder(pictures, split="all")


def test_a_training_file_on_a_failing_disk_ends_an_evaluation_of_the_test_folder(tmp_path: Path, fails: Fails) -> None:
    """It may be one of the test files in another class."""
    write_folder(tmp_path / "train", 3)
    write_folder(tmp_path / "test", 2, first=3)
    fails("001.png", errno.EIO)
    with pytest.raises(DataError, match=r"^'train/disc/001\.png': cannot be read: Input/output error"):
        load_folder(tmp_path, split="test")


def write_damaged(folder: Path, numbers: range) -> None:
    """Write files that begin as a picture does and end soon."""
    for number in numbers:
        (folder / f"cut{number}.jpg").write_bytes(encode(noise(64, 64, seed=number), "JPEG")[:700])


@pytest.mark.parametrize("split", ["train", "all"])
def test_where_most_pictures_are_damaged_the_rest_is_not_trained_on(
    pictures: Path, caplog: pytest.LogCaptureFixture, split: Split
) -> None:
    write_damaged(pictures / "disc", range(36))  # half of all
    load_folder(pictures, split=split)
    caplog.clear()
    (pictures / "grass" / "one more").touch()
    reasons = "36 damaged or cut short; 1 empty"
    with pytest.raises(DataError, match=rf"37 of 73 pictures in .* cannot be decoded \({reasons}\): more than half"):
        load_folder(pictures, split=split)
    assert "skipped 'grass/one more': empty" in caplog.messages


def test_of_few_pictures_most_may_be_damaged(tmp_path: Path) -> None:
    write_folder(tmp_path, 4)
    write_damaged(tmp_path / "disc", range(19))
    assert len(load_folder(tmp_path, split="all")) == 12
    write_damaged(tmp_path / "grass", range(19, 20))
    with pytest.raises(DataError, match="20 of 32 pictures"):
        load_folder(tmp_path, split="all")


@pytest.mark.parametrize("place", ["test", "val"])
def test_a_part_of_which_most_pictures_are_damaged_is_found_before_the_training(tmp_path: Path, place: str) -> None:
    for name, first in (("train", 0), ("test", 40), ("val", 50)):
        write_folder(tmp_path / name, 40 if name == "train" else 5, first=first)
    write_damaged(tmp_path / place / "disc", range(20))
    with pytest.raises(DataError, match=rf"^20 of 35 pictures in .*{place} cannot be decoded"):
        load_folder(tmp_path, split="train", with_val=True)


def test_what_programs_put_beside_pictures_is_no_damaged_picture(pictures: Path) -> None:
    for number in range(60):
        (pictures / "disc" / f"{number}.xml").write_text("<annotation/>")
    assert len(load_folder(pictures, split="all")) == 36
