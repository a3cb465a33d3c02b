"""A folder of pictures, one sub-folder a class, as a dataset.

    class folders -> files -> read: digest, header -> split by digest -> decoded as the service does -> Dataset

What cannot be used is named and left out, or ends it all, as the caller wishes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import unicodedata
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.data import DataError, Dataset, channel_statistics
from model.pictures import PictureError, open_picture, picture_pixels

log = logging.getLogger(__name__)

OnBadImage = Literal["skip", "fail"]

# What sub-folders that are splits are called, in any case; anything else is a class.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}

SIZES = (8, 512)
TEST_SHARE = 0.1
# The service's own limit is lower by default; pictures of one's own are trusted to be as large as cameras make them.
MAX_PICTURE_PIXELS = 8192 * 8192
MAX_FILE_BYTES = 256 << 20
MAX_IMAGES_BYTES = 8 << 30
MAX_NAMED = 20
MAX_THREADS = 8

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PictureFile:
    """A file of a class folder; `digest` is the SHA-256 (hex) of its bytes once it has been read."""

    path: Path
    label: int
    digest: str = ""


class BadFiles:
    """Files that cannot be used: collected to be named at the end, or fatal at once."""

    def __init__(self, root: Path, on_bad_image: OnBadImage) -> None:
        self.root = root
        self.on_bad_image = on_bad_image
        self.lines: list[str] = []

    def add(self, path: Path, reason: str) -> None:
        """Take note of a file below the root. Raises DataError if bad files are fatal."""
        line = f"{str(path.relative_to(self.root))!r}: {reason}"  # repr: names may hold line breaks
        if self.on_bad_image == "fail":
            raise DataError(f"{line} (--on-bad-image skip goes on without such files)")
        self.lines.append(line)

    def report(self) -> None:
        """Log the first names, and how many there are."""
        for line in self.lines[:MAX_NAMED]:
            log.warning("skipped %s", line)
        if self.lines:
            more = f", the first {MAX_NAMED} are named above" if len(self.lines) > MAX_NAMED else ""
            log.warning("skipped %d file(s) that cannot be used%s", len(self.lines), more)


def load_folder(path: Path, *, train: bool, image_size: int = 32, on_bad_image: OnBadImage = "skip") -> Dataset:
    """Load the training or the test pictures of a folder as uint8 (N, 3, image_size, image_size).

    The classes are the sub-folders that are not hidden, sorted; a class has all files below its folder. Links are
    followed, each folder once. About a tenth of the pictures, chosen by their bytes, is the test split, so that what
    is added later moves nothing; sub-folders `train` and `test` (or `val`) instead of classes are taken as the split.
    Of files that are equal byte by byte one counts. Pictures are in the order of their digests, classes mixed.

    Raises DataError if the folder is not as described, leaves a class nothing to train on, or needs more than
    MAX_IMAGES_BYTES; with `on_bad_image` "fail" also for the first file that is no picture.
    """
    try:
        root = path.expanduser()
    except RuntimeError:  # ~name of nobody here
        raise DataError(f"no folder of pictures at {path}: whose home that is cannot be told") from None
    if not SIZES[0] <= image_size <= SIZES[1]:
        raise DataError(f"image size {image_size}: expected {SIZES[0]} to {SIZES[1]} pixels")
    bad = BadFiles(root, on_bad_image)
    parts = _split_folders(root)
    part = None if not parts else "train" if train else "test" if "test" in parts else "val"
    classes = _class_names(parts.get("train", root))
    files = _list_files(parts[part] if part else root, classes, bad, test=part in {"test", "val"})
    _check_memory(len(files), image_size)
    with _bombs_are_errors():
        files = _examine(files, bad)
        if part is None:
            test = _test_files(files)
            files = [file for file in files if (file in test) != train]
        images, labels = _decode(files, image_size, bad)
    bad.report()
    split = part or ("train" if train else "test")
    _check_enough(root, split, labels, classes)
    log.info("%s: %d classes, %d pictures of the %s split", root, len(classes), len(labels), split)
    mean, std = channel_statistics(images)
    return Dataset(_name_of(root), split, images, labels, classes, mean, std)


def _split_folders(root: Path) -> dict[str, Path]:
    """Return the sub-folders that are splits, by "train", "test" and "val"; none if the sub-folders are classes.

    Raises DataError where that cannot be told, or which of two it is.
    """
    folders = _sub_folders(root)
    splits = {folder: SPLITS.get(folder.name.lower(), "") for folder in folders}
    found = sorted(set(splits.values()) - {""})
    if "train" not in found or len(found) < 2:
        return {}
    for folder in folders:
        same = [other.name for other in folders if splits[other] == splits[folder]]
        if not splits[folder]:
            raise DataError(f"{root} holds folders for {' and '.join(found)}, and also {folder.name!r}, which is none")
        if len(same) > 1:
            raise DataError(f"{root} holds more than one folder for {splits[folder]}: {' and '.join(same)}")
    parts = {split: folder for folder, split in splits.items()}
    if len(found) == 3:
        unused, trained_on = parts["val"].name, parts["train"].name
        log.info("%s: %r is not used, since what is held out is taken from %r", root, unused, trained_on)
    return parts


def _sub_folders(root: Path) -> list[Path]:
    try:
        return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"no folder of pictures at {root}: {error.strerror}") from error


def _class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the class folders. Raises DataError for fewer than two, and for names that cannot be told."""
    names = tuple(folder.name for folder in _sub_folders(root))
    if len(names) < 2:
        raise DataError(f"{root} must hold a sub-folder for each class, two at least: there are {len(names)}")
    for name in names:
        # Control characters, line separators, and what is not UTF-8 would break logs, metrics and JSON.
        if not name.strip() or {unicodedata.category(character) for character in name} & {"Cc", "Cs", "Zl", "Zp"}:
            raise DataError(f"{root}: {name!r} is no name for a class: it holds characters that cannot be printed")
    return names


def _list_files(root: Path, classes: Sequence[str], bad: BadFiles, *, test: bool) -> list[PictureFile]:
    """List the files of each class in the order of their paths. Only a separate test folder may lack some classes."""
    unknown = [folder.name for folder in _sub_folders(root) if folder.name not in classes]
    if unknown:
        raise DataError(f"{root} has a class that the training folder does not have: {unknown[0]!r}")
    files: list[PictureFile] = []
    for label, name in enumerate(classes):
        found = sorted(_files_below(root / name, bad)) if (root / name).is_dir() else []
        if not found and not test:
            raise DataError(f"class folder {root / name} holds no file that can be read")
        files += [PictureFile(file, label) for file in found]
    return files


def _files_below(folder: Path, bad: BadFiles) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders that are not hidden; links in a circle end."""
    seen: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        bad.add(Path(error.filename), f"cannot be read: {error.strerror}")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        identity = Path(place).stat()
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _check_memory(count: int, size: int) -> None:
    """Raise DataError if so many pictures of that size are more than fits."""
    needed = count * 3 * size**2
    if needed > MAX_IMAGES_BYTES:
        raise DataError(
            f"{count} pictures of {size}x{size} take {needed / 2**30:.1f} GiB, more than the {MAX_IMAGES_BYTES >> 30} "
            f"GiB that are allowed: take --image-size {int((MAX_IMAGES_BYTES / (3 * count)) ** 0.5)} or fewer pictures"
        )


@contextmanager
def _bombs_are_errors() -> Iterator[None]:
    """Have Pillow's warning of too many pixels raised, as the service does, and its others kept quiet."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _in_threads(function: Callable[[Item], Result], items: Sequence[Item], what: str) -> Iterator[Iterator[Result]]:
    """Yield the results in order, with a bar on a terminal; what is not begun at the end of the block never is."""
    pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), thread_name_prefix="pictures")
    try:
        results = pool.map(function, items)
        yield iter(tqdm(results, total=len(items), desc=what, unit="file", disable=None, leave=False))
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path: Path) -> bytes:
    """Return a file's bytes. Raises PictureError."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise PictureError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from error


def _examine(files: Sequence[PictureFile], bad: BadFiles) -> list[PictureFile]:
    """Read every file once: return those that begin like pictures, each content once, in the order of digests."""

    def digest(file: PictureFile) -> str | PictureError:
        try:
            data = _read(file.path)
            open_picture(data, MAX_PICTURE_PIXELS)
        except PictureError as error:
            return error
        return hashlib.sha256(data).hexdigest()

    first: dict[str, PictureFile] = {}
    repeated = 0
    with _in_threads(digest, files, "reading") as digests:
        for file, found in zip(files, digests, strict=True):
            if isinstance(found, PictureError):
                bad.add(file.path, str(found))
            elif found not in first:
                first[found] = replace(file, digest=found)
            elif first[found].label == file.label:
                repeated += 1
            else:
                where = str(first[found].path.relative_to(bad.root))
                bad.add(file.path, f"the same file as {where!r}, which is of another class")
    if repeated:
        log.info("%d file(s) repeat others byte by byte and count once", repeated)
    return sorted(first.values(), key=lambda file: file.digest)


def _test_files(files: Sequence[PictureFile]) -> set[PictureFile]:
    """Return the files of the test split: those of the lowest digests, but never all of a class."""
    chosen = {file for file in files if int(file.digest[:16], 16) < TEST_SHARE * 2**64}
    last = {file.label: file for file in files}  # of each class, the one of the highest digest
    return chosen - set(last.values())


def _decode(files: Sequence[PictureFile], size: int, bad: BadFiles) -> tuple[Tensor, Tensor]:
    """Return images uint8 (N, 3, size, size) and labels int64 (N,) of the files that can be decoded."""

    def pixels(file: PictureFile) -> NDArray[np.uint8] | PictureError:
        try:
            return picture_pixels(open_picture(_read(file.path), MAX_PICTURE_PIXELS), size)
        except PictureError as error:
            return error

    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    labels: list[int] = []
    with _in_threads(pixels, files, "decoding") as decoded:
        for file, found in zip(files, decoded, strict=True):
            if isinstance(found, PictureError):
                bad.add(file.path, str(found))
            else:
                images[len(labels)] = torch.from_numpy(found)
                labels.append(file.label)
    return images[: len(labels)], torch.tensor(labels, dtype=torch.int64)


def _check_enough(root: Path, split: str, labels: Tensor, classes: Sequence[str]) -> None:
    """Raise DataError if there is nothing to test on, or a class without a picture to train on."""
    if split != "train" and not len(labels):
        raise DataError(f"{root} has no picture to test on: add pictures, or make sub-folders 'train' and 'test'")
    if split == "train":
        for name, count in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
            if not count:
                raise DataError(f"class {name!r} of {root} has no picture to train on: none of its files can be used")


def _name_of(root: Path) -> str:
    """Return the folder's name with what a checkpoint's name may hold."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._")
    return name[:60] or "folder"
