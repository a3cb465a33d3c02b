import asyncio
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from app.imaging import Decoder, decode
from model import checkpoint
from model.data import DataError, channel_statistics
from model.image_folder.dataset import load_folder
from model.image_folder.memory_check import BESIDES_PIXELS
from model.train import Trainer
from model.training.recipe import PRESETS
from tests.bombs import png_without_pixels
from tests.conftest import encode, noise
from tests.decoders import decode_all
from tests.pictures import KINDS, write_folder
from tests.unit.model.image_folder.folders import both_splits, images_of


def room_for(count: int, size: int) -> int:
    """Return of how many bytes that are available so many pictures may be held."""
    return -(-count * (3 * size**2 + BESIDES_PIXELS) * 10 // 8)


def rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(noise(50, 40), "JPEG", exif=exif)


def see_through() -> Image.Image:
    image = noise(50, 40).convert("RGBA")
    image.putalpha(noise(50, 40, seed=1).convert("L"))
    return image


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16))


ODD_PICTURES = {
    "exif-rotated.jpg": rotated(),
    "palette.png": encode(noise(50, 40).quantize(16)),
    "palette-with-transparency.png": encode(noise(50, 40).quantize(16), transparency=3),
    "alpha.png": encode(see_through()),
    "alpha.webp": encode(see_through(), "WEBP"),
    "cmyk.jpg": encode(noise(50, 40).convert("CMYK"), "JPEG"),
    "sixteen-bit.png": encode(sixteen_bits()),
    "grey.jpg": encode(noise(50, 40).convert("L"), "JPEG"),
    "animated.gif": encode(noise(50, 40), "GIF", save_all=True, append_images=[noise(50, 40, seed=2)]),
    "plain.bmp": encode(noise(50, 40), "BMP"),
    "no-suffix": encode(noise(33, 77)),
    "panorama.jpg": encode(noise(1000, 200), "JPEG"),
    "tall.png": encode(noise(200, 1000)),
}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures", 12)


def test_training_sees_the_very_pixels_that_the_service_sees(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", 1, kinds=("grass",))
    (tmp_path / "train" / "odd").mkdir()
    (tmp_path / "test").mkdir()
    for name, data in ODD_PICTURES.items():
        (tmp_path / "train" / "odd" / name).write_bytes(data)
    dataset = load_folder(tmp_path, split="train", image_size=24)
    decoder = Decoder(24, 4096 * 4096, threads=1)
    try:
        served = asyncio.run(decode_all(decoder, list(ODD_PICTURES.values())))
    finally:
        decoder.close()
    odd = images_of(dataset.select((dataset.labels == 1).nonzero()[:, 0], "odd"))
    assert odd == {image.tobytes() for image in served if isinstance(image, np.ndarray)}
    assert len(odd) == len(ODD_PICTURES)


def test_classes_are_the_sorted_folders_and_label_their_pictures(pictures: Path) -> None:
    train, test = both_splits(pictures)
    assert train.classes == test.classes == KINDS
    assert (train.name, train.split, test.split) == ("pictures", "train", "test")
    assert train.images.shape == (len(train), 3, 32, 32)
    assert (train.images.dtype, train.labels.dtype) == (torch.uint8, torch.int64)
    _, green, blue = train.images.float().mean(dim=(2, 3)).unbind(dim=1)
    looks: Tensor = torch.where(green > 2 * blue, 1, torch.where(blue > 1.2 * green, 0, 2))
    assert torch.equal(looks, train.labels)


def test_image_size_is_kept(pictures: Path) -> None:
    assert load_folder(pictures, split="train", image_size=48).images.shape[2:] == (48, 48)


def test_splits_are_disjoint_and_hold_every_picture(pictures: Path) -> None:
    train, test = (images_of(part) for part in both_splits(pictures))
    assert not train & test
    assert len(train | test) == 3 * 12
    assert 0 < len(test) < 12


def test_added_pictures_move_no_others(pictures: Path) -> None:
    train, test = (images_of(part) for part in both_splits(pictures))
    for number in range(40):
        (pictures / "disc" / f"a{number}.png").write_bytes(encode(noise(seed=number)))
    larger_train, larger_test = (images_of(part) for part in both_splits(pictures))
    assert train < larger_train
    assert test < larger_test


def test_equal_files_count_once_so_that_none_is_in_both_splits(pictures: Path) -> None:
    train, test = both_splits(pictures)
    for file in sorted((pictures / "disc").iterdir()):
        (pictures / "disc" / f"copy-of-{file.name}").write_bytes(file.read_bytes())
    for before, after in zip((train, test), both_splits(pictures), strict=True):
        assert before.fingerprint() == after.fingerprint()


def test_a_file_of_two_classes_is_of_none(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    everything = sum(len(part) for part in both_splits(pictures))
    (pictures / "stripes" / "same.jpg").write_bytes((pictures / "disc" / "000.jpg").read_bytes())
    assert sum(len(part) for part in both_splits(pictures)) == everything - 1
    said = "'stripes/same.jpg': of two classes, of which neither is used: the same file as 'disc/000.jpg'"
    assert said in caplog.text


def test_order_mixes_the_classes_and_does_not_depend_on_names(tmp_path: Path) -> None:
    first, second = write_folder(tmp_path / "a", 8), write_folder(tmp_path / "b", 8)
    for number, file in enumerate(sorted((second / "grass").iterdir())):
        file.rename(file.with_name(f"{100 - number}{file.suffix}"))
    one, other = (load_folder(root, split="train") for root in (first, second))
    assert one.fingerprint() == other.fingerprint()
    assert one.labels.tolist() != sorted(one.labels.tolist())


def test_mean_and_std_are_those_of_the_training_pictures(pictures: Path) -> None:
    train = load_folder(pictures, split="train")
    values = train.images.double().permute(1, 0, 2, 3).reshape(3, -1) / 255
    assert train.mean == pytest.approx(values.mean(dim=1).tolist(), abs=1e-6)
    assert train.std == pytest.approx(values.std(dim=1, correction=0).tolist(), abs=1e-6)


def test_a_channel_that_never_changes_can_be_divided_by() -> None:
    mean, std = channel_statistics(torch.full((2, 3, 8, 8), 51, dtype=torch.uint8))
    assert mean == pytest.approx((0.2, 0.2, 0.2))
    assert min(std) > 0.003


def test_hidden_files_are_ignored_and_nested_and_linked_ones_are_not(
    pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = len(load_folder(pictures, split="train"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    added = 0
    for place in (pictures / "disc" / "deep" / "deeper", elsewhere):
        place.mkdir(parents=True, exist_ok=True)
        for number in range(20):
            added += 1
            (place / f"{number}.png").write_bytes(encode(noise(seed=added)))
    (pictures / "disc" / "linked").symlink_to(elsewhere)
    (pictures / "disc" / "again").symlink_to(elsewhere)
    (pictures / "disc" / "circle").symlink_to(pictures / "disc")
    (pictures / ".git").mkdir()
    (pictures / "disc" / ".thumbnails").mkdir()
    (pictures / "disc" / ".thumbnails" / "a.txt").write_text("no picture")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (pictures / "disc" / name).write_text("no picture")
    train, test = both_splits(pictures)
    assert train.classes == KINDS
    assert len(train) + len(test) == 3 * 12 + added
    assert len(train) > plain
    assert "skipped" not in caplog.text


def write_bad_files(root: Path) -> dict[str, str]:
    """Write one file of each kind that is no picture; return what is said of each."""
    good = encode(noise(64, 64), "JPEG")
    (root / "text.jpg").write_text("not a picture at all")
    (root / "empty.png").touch()
    (root / "bomb.png").write_bytes(png_without_pixels(20_000, 20_000))
    (root / "large.png").write_bytes(png_without_pixels(8193, 8192))
    (root / "drawing.tiff").write_bytes(encode(noise(), "TIFF"))
    (root / "dangling.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe.png")
    (root / "two\nlines.jpg").write_text("nor this")
    # The digest of what is cut short decides whether it is in the training split, and so whether it is decoded.
    for length in range(len(good) // 2, len(good)):
        (root / "cut.jpg").write_bytes(good[:length])
        if int(hashlib.sha256(good[:length]).hexdigest()[0], 16) > 4:
            break
    return {
        "'text.jpg'": "not an intact JPEG, PNG, WebP, GIF or BMP picture",
        "'empty.png'": "empty",
        "'bomb.png'": "more than 67108864 pixels",
        "'large.png'": "more than 67108864 pixels",
        "'drawing.tiff'": "TIFF or a camera's raw file, which is not read here: save it as JPEG or PNG",
        "'dangling.png'": "cannot be read: No such file or directory",
        "'pipe.png'": "not a regular file",
        "'two\\nlines.jpg'": "not an intact JPEG, PNG, WebP, GIF or BMP picture",
        "'cut.jpg'": "damaged or cut short",
    }


def test_bad_files_are_named_and_left_out(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = load_folder(pictures, split="train")
    expected = write_bad_files(pictures / "grass")
    caplog.set_level(logging.WARNING)
    assert load_folder(pictures, split="train").fingerprint() == before.fingerprint()
    lines = [line for line in caplog.messages if line.startswith("skipped")]
    named = {f"skipped {name.replace(chr(39), chr(39) + 'grass/', 1)}: {why}" for name, why in expected.items()}
    assert set(lines[:-1]) == named
    assert lines[-1] == f"skipped {len(expected)} file(s) that cannot be used"


def test_of_many_bad_files_twenty_are_named(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(30):
        (pictures / "disc" / f"{number}.txt").write_text("no picture")
    load_folder(pictures, split="train")
    assert caplog.text.count(".txt'") == 20
    assert "skipped 30 file(s) that cannot be used, the first 20 are named above" in caplog.text


@pytest.mark.parametrize("name", ["text.jpg", "empty.png", "bomb.png", "cut.jpg", "dangling.png"])
def test_a_bad_file_is_fatal_if_asked_for(tmp_path: Path, name: str) -> None:
    root, bad = write_folder(tmp_path / "pictures", 3), tmp_path / "bad"
    bad.mkdir()
    reasons = write_bad_files(bad)
    (bad / name).rename(root / "disc" / name)
    with pytest.raises(DataError) as caught:
        load_folder(root, split="train", on_bad_image="fail")
    assert str(caught.value).startswith(f"'disc/{name}': {reasons[repr(name)]}")
    assert load_folder(root, split="train", on_bad_image="skip").classes == KINDS


def test_a_file_is_not_bad_because_memory_is_missing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_image: Image.Image, _size: int) -> None:
        raise MemoryError

    monkeypatch.setattr("model.pictures.codec.evaluation_transform", full)
    with pytest.raises(MemoryError):
        load_folder(pictures, split="train")


def test_an_unreadable_sub_folder_is_a_bad_file(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "disc" / "locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    load_folder(pictures, split="train")
    assert "skipped 'disc/locked': cannot be read: Permission denied" in caplog.text


def test_the_home_of_nobody_is_no_folder() -> None:
    with pytest.raises(DataError, match="no folder of pictures at ~nobody-at-all/pictures"):
        load_folder(Path("~nobody-at-all/pictures"), split="train")


@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_pictures_leave_every_class_one_to_train_on(tmp_path: Path, count: int) -> None:
    for attempt in range(10):  # another picture, another digest
        root = tmp_path / str(attempt)
        for kind in ("a", "b"):
            (root / kind).mkdir(parents=True)
            for number in range(count):
                seed = 1000 * attempt + 10 * number + (kind == "b")
                (root / kind / f"{number}.png").write_bytes(encode(noise(seed=seed)))
        train = load_folder(root, split="train")
        assert train.labels.bincount(minlength=2).min() >= 1
        if len(train) < 2 * count:
            assert len(train) + len(load_folder(root, split="test")) == 2 * count
            continue
        with pytest.raises(DataError, match="has no picture to test on: add pictures"):
            load_folder(root, split="test")


@pytest.mark.usefixtures("narrow_stages")
@pytest.mark.parametrize("count", [2, 6])
def test_few_pictures_can_be_trained_on(tmp_path: Path, count: int) -> None:
    dataset = load_folder(write_folder(tmp_path / "few", count, kinds=("disc", "grass")), split="train", image_size=16)
    recipe = PRESETS["cpu"].for_data(16, len(dataset), 2, {"phases": ((8, 1), (16, 1))})
    path = Trainer(recipe, dataset, tmp_path / "run", device=torch.device("cpu")).run()
    metadata = checkpoint.load(path).metadata
    assert (metadata.name, metadata.classes, metadata.input_size) == ("resnet18-few", ("disc", "grass"), 16)
    assert (metadata.mean, metadata.std) == (dataset.mean, dataset.std)
    assert metadata.dataset["held_out_images"] >= 1


@pytest.mark.parametrize(
    ("name", "expected"),
    [("My cats & dogs!", "My-cats-dogs"), ("猫", "folder"), ("_x.y-", "x.y"), ("x" * 99, "x" * 60)],
)
def test_the_folder_lends_its_name_as_far_as_checkpoints_allow(tmp_path: Path, name: str, expected: str) -> None:
    root = write_folder(tmp_path / name, 1)
    assert load_folder(root, split="train").name == expected
    assert load_folder(root / "disc" / "..", split="train").name == expected


def test_what_is_no_folder_of_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder of pictures at .*nowhere: No such file"):
        load_folder(tmp_path / "nowhere", split="train")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"no folder of pictures at .*file: Not a directory"):
        load_folder(tmp_path / "file", split="train")
    with pytest.raises(DataError, match="a sub-folder for each class, two at least: there are 0"):
        load_folder(tmp_path, split="train")
    root = write_folder(tmp_path / "pictures", 2, kinds=("disc",))
    with pytest.raises(DataError, match="two at least: there are 1"):
        load_folder(root, split="train")
    (root / "hollow").mkdir()
    (root / "hollow" / ".hidden").touch()
    with pytest.raises(DataError, match=r"class folder .*hollow holds no file"):
        load_folder(root, split="train")


def test_a_class_of_nothing_but_bad_files_is_refused(pictures: Path) -> None:
    (pictures / "words").mkdir()
    (pictures / "words" / "a.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"class 'words' of .* has no picture to train on"):
        load_folder(pictures, split="train")


@pytest.mark.parametrize("name", ["line\nbreak", "tab\t", " ", os.fsdecode(b"caf\xe9"), "line\u2028separator"])
def test_class_names_that_cannot_be_printed_are_refused(pictures: Path, name: str) -> None:
    (pictures / name).mkdir()
    with pytest.raises(DataError, match="is no name for a class") as caught:
        load_folder(pictures, split="train")
    assert str(caught.value).isprintable()


def test_class_names_of_other_languages_are_fine(pictures: Path) -> None:
    (pictures / "disc").rename(pictures / "кошки и 猫")
    assert load_folder(pictures, split="train").classes == ("grass", "stripes", "кошки и 猫")


@pytest.mark.parametrize("size", [7, 1025])
def test_sizes_out_of_range_are_refused(pictures: Path, size: int) -> None:
    with pytest.raises(DataError, match=f"image size {size}: expected 8 to 1024"):
        load_folder(pictures, split="train", image_size=size)


def test_more_than_fits_is_refused_before_a_file_is_read(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: room_for(36, 20))
    monkeypatch.setattr("model.image_folder.files.read_picture", lambda path: pytest.fail(f"read {path}"))
    said = r"36 pictures of 32x32 take 0\.2 MiB .* of the 0\.2 MiB that are available .* 80% may be taken: take"
    with pytest.raises(DataError, match=f"{said} --image-size 20 or fewer pictures"):
        load_folder(pictures, split="train")
    for available in (room_for(36, 7), 36 * BESIDES_PIXELS // 2, 0):
        monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda available=available: available)
        with pytest.raises(DataError, match="may be taken: take fewer pictures"):
            load_folder(pictures, split="train")


def test_of_small_pictures_more_than_their_pixels_counts(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thumbnails, paths and digests are more than they are."""
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: 36 * 3 * 8 * 8 * 5)
    with pytest.raises(DataError, match="36 pictures of 8x8 take"):
        load_folder(pictures, split="train", image_size=8)


def test_of_a_share_for_the_test_only_its_own_pictures_count(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = len(load_folder(pictures, split="test"))
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: room_for(count, 32))
    assert len(load_folder(pictures, split="test")) == count
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: room_for(count, 31))
    monkeypatch.setattr("model.image_folder.dataset.decode", lambda *_: pytest.fail("decoded"))
    with pytest.raises(DataError, match=f"^{count} pictures of 32x32 take"):
        load_folder(pictures, split="test")


@pytest.mark.parametrize("available", [None, room_for(36, 32)])
def test_what_fits_is_read(pictures: Path, monkeypatch: pytest.MonkeyPatch, available: int | None) -> None:
    monkeypatch.setattr("model.image_folder.memory_check.available_memory", lambda: available)
    assert len(load_folder(pictures, split="all")) == 36


def test_each_picture_has_the_path_of_its_file(pictures: Path) -> None:
    (pictures / "disc" / "broken.jpg").write_bytes((pictures / "disc" / "000.jpg").read_bytes()[:400])
    dataset = load_folder(pictures, split="all", image_size=16)
    assert len(dataset) == 36
    assert dataset.paths is not None
    for path, label, image in zip(dataset.paths, dataset.labels.tolist(), dataset.images, strict=True):
        assert Path(path).parent == pictures / KINDS[label]
        assert (image.numpy() == decode(Path(path).read_bytes(), 16, 1 << 20)).all()
