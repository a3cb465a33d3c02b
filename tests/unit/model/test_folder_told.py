"""What is said of a folder's pictures before they are trained on: how many there are, how large, what was left out."""

import shutil
from pathlib import Path

import pytest

from model.data import DataError
from model.folder import load_folder
from model.pictures import PictureError, open_picture
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
    dataset = load_folder(tmp_path, train=True)
    counts = [(dataset.labels == label).sum().item() for label in range(3)]
    assert ", ".join(f"{name} {count}" for name, count in zip(KINDS, counts, strict=True)) in caplog.text
    assert "fewer than 10" not in caplog.text
    for file in sorted((tmp_path / "grass").iterdir())[:15]:
        file.unlink()
    load_folder(tmp_path, train=True)
    assert "fewer than 10 pictures to train on: grass" in caplog.text


def test_of_photos_is_said_that_most_of_them_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.png").write_bytes(encode(noise(300, 200, seed=10 * ord(name) + number)))
    load_folder(tmp_path, train=True)
    assert "pictures of some 200 pixels are brought to 32: a larger --image-size keeps more of them" in caplog.text
    caplog.clear()
    load_folder(tmp_path, train=True, image_size=64)
    assert "--image-size" not in caplog.text


def test_a_phones_heic_is_called_so_and_reasons_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PictureError, match="HEIC or AVIF, which is not read here"):
        open_picture(HEIC, 1 << 20)
    write_folder(tmp_path, 12)
    for number in range(30):
        (tmp_path / "disc" / f"IMG_{number}.heic").write_bytes(HEIC + bytes([number]))
    (tmp_path / "grass" / "cut.jpg").write_bytes(encode(noise(), "JPEG")[:10])
    load_folder(tmp_path, train=True)
    assert "of these: 30 HEIC or AVIF" in caplog.text
    assert "; 1 " in caplog.text


def test_a_class_copied_whole_is_one_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path, 30, kinds=("disc", "grass"))
    shutil.copytree(tmp_path / "disc", tmp_path / "discs")
    with pytest.raises(DataError, match=r"class 'disc' of .* has no picture to train on"):
        load_folder(tmp_path, train=True)
    assert caplog.messages[-1] == "of these: 30 of two classes, of which neither is used"


def test_thumbnails_of_network_drives_are_no_pictures_and_no_class(tmp_path: Path) -> None:
    write_folder(tmp_path, 12)
    for place in (tmp_path, tmp_path / "disc"):
        (place / "@eaDir").mkdir()
        (place / "@eaDir" / "SYNOPHOTO_THUMB.jpg").write_bytes(encode(noise(), "JPEG"))
    dataset = load_folder(tmp_path, train=None)
    assert dataset.classes == KINDS
    assert len(dataset) == 36
