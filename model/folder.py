"""A folder of pictures, one sub-folder a class, as a dataset.

    class folders -> files -> read: digest, header -> split by digest -> decoded as the service does -> Dataset

What cannot be used is named and left out, or ends it all, as the caller wishes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from model.data import DataError, Dataset, NoTestSet, channel_statistics
from model.folder_layout import (
    MAX_NAMED,
    BadFiles,
    OnBadImage,
    PictureFile,
    class_folders,
    class_names,
    list_files,
    split_folders,
    tell_of_doubts,
)
from model.picture_files import MAX_OWN_PIXELS, PictureError, read_picture
from model.pictures import open_picture, picture_pixels

log = logging.getLogger(__name__)

SIZES = (8, 512)
TEST_SHARE = 0.1
MAX_IMAGES_BYTES = 8 << 30
MAX_THREADS = 8
FEW_PICTURES = 10  # of a class
LARGE_TIMES = 4  # as many pixels on the shorter side as the network is to see

Item = TypeVar("Item")
Result = TypeVar("Result")


def load_folder(path: Path, *, train: bool | None, image_size: int = 32, on_bad_image: OnBadImage = "skip") -> Dataset:
    """Load the training or the test pictures of a folder, or all (None), as uint8 (N, 3, image_size, image_size).

    The classes are the sub-folders that are not hidden, sorted; a class has all files below its folder. Links are
    followed, each folder once. About a tenth of the pictures, chosen by their bytes, is the test split, so that what
    is added later moves nothing but the only picture of a class; sub-folders `train` and `test` (or `val`) instead of
    classes are taken as the split, and what is in both is not trained on. Of files that are equal byte by byte one
    counts, of two classes none. Pictures are in the order of their digests, classes mixed.

    Raises DataError if the folder is not as described, leaves a class nothing to train on, or needs more than
    MAX_IMAGES_BYTES, and NoTestSet if there is nothing to test on; with `on_bad_image` "fail" also for the first file
    that is no picture. What is wrong with the test split is found when the training split is loaded.
    """
    try:
        root = path.expanduser()
    except RuntimeError:  # ~name of nobody here
        raise DataError(f"no folder of pictures at {path}: whose home that is cannot be told") from None
    if not SIZES[0] <= image_size <= SIZES[1]:
        raise DataError(f"image size {image_size}: expected {SIZES[0]} to {SIZES[1]} pixels")
    bad = BadFiles(root, on_bad_image)
    split_dirs = split_folders(root)
    test_split = None if not split_dirs else "test" if "test" in split_dirs else "val"
    wanted_split = "train" if split_dirs and train else test_split
    classes = class_names(split_dirs.get("train", root))

    if train:
        tell_of_doubts(root, split_dirs)

    def listed(split: str | None) -> list[PictureFile]:
        place = split_dirs[split] if split else root
        files = list_files(class_folders(place), place, classes, bad, test=split in {"test", "val"})
        _check_memory(len(files), image_size)
        return files

    if len(split_dirs) == 3 and train is not None:
        unused, trained_on = split_dirs["val"].name, split_dirs["train"].name
        log.info("%s: %r is not used, since what is held out is taken from %r", root, unused, trained_on)
    loaded_splits = split_dirs if train is None and split_dirs else (wanted_split,)
    files = [file for split in loaded_splits for file in listed(split)]
    _check_memory(len(files), image_size)
    with _bombs_are_errors():
        files = _read_and_deduplicate(files, bad)
        pictures_found, test_files = len(files), _choose_test_files(files)
        # Three layouts: split folders, of classes alone a share chosen by digests, or (train is None) all there is.
        if test_split and train:
            test_files = set(_read_and_deduplicate(listed(test_split), bad))
            files = _drop_test_duplicates(files, {file.digest for file in test_files})
        elif not split_dirs and train is not None:
            files = [file for file in files if (file in test_files) != train]
        if train and on_bad_image == "fail":
            _decode(list(test_files), image_size, bad)  # only to see that it can be done, before the time for training
        images, labels, paths = _decode(files, image_size, bad)
    bad.report()
    split = "all" if train is None else wanted_split or ("train" if train else "test")
    _check_enough(root, split, labels, classes)
    suffix = "" if split == "all" else f" of the {split} split"
    log.info("%s: %d classes, %d pictures%s", root, len(classes), len(labels), suffix)
    if train:
        _tell_of_training_pictures(root, files, labels, classes, image_size)
    if not split_dirs and split == "test":
        note = "the test share of a folder without train and test; resnet evaluate --split all takes all"
        log.info("%s: %d of %d pictures: %s", root, len(labels), pictures_found, note)
    mean, std = channel_statistics(images)
    return Dataset(_name_of(root), split, images, labels, classes, mean, std, in_digest_order=True, paths=paths)


def _tell_of_training_pictures(
    root: Path, files: Sequence[PictureFile], labels: Tensor, classes: Sequence[str], image_size: int
) -> None:
    """Say how many pictures each class has, where there are few, and where much of a picture is lost."""
    counts = dict(zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    smallest = sorted(counts, key=lambda name: counts[name])[:MAX_NAMED]
    shown = classes if len(classes) <= MAX_NAMED else smallest
    beginning = "" if len(shown) == len(classes) else "the smallest: "
    log.info("%s: %s%s", root, beginning, ", ".join(f"{name} {counts[name]}" for name in shown))
    few = [name for name in smallest if counts[name] < FEW_PICTURES]
    if few:
        log.warning("%s: fewer than %d pictures to train on: %s", root, FEW_PICTURES, ", ".join(few))
    side = int(np.median([file.side for file in files])) if files else 0
    if side > LARGE_TIMES * image_size:
        note = "a larger --image-size keeps more of them, and takes longer"
        log.info("%s: pictures of some %d pixels are brought to %d: %s", root, side, image_size, note)


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


def _read_and_deduplicate(files: Sequence[PictureFile], bad: BadFiles) -> list[PictureFile]:
    """Read every file once: return those that begin like pictures, each content once, in the order of digests."""

    def digest(file: PictureFile) -> PictureFile | PictureError:
        try:
            data = read_picture(file.path)
            side = min(open_picture(data, MAX_OWN_PIXELS).size)
        except PictureError as error:
            return error
        return replace(file, digest=hashlib.sha256(data).hexdigest(), side=side)

    first: dict[str, PictureFile] = {}
    contradictory: set[str] = set()
    repeated = 0
    with _in_threads(digest, files, "reading") as digests:
        for file, found in zip(files, digests, strict=True):
            if isinstance(found, PictureError):
                bad.add(file.path, str(found))
            elif (same := first.setdefault(found.digest, found)) is found:
                pass
            elif same.label == file.label:
                repeated += 1
            else:
                contradictory.add(found.digest)
                where = str(same.path.relative_to(bad.root))
                bad.add(file.path, f"of two classes, of which neither is used: the same file as {where!r}")
    if repeated:
        log.info("%d file(s) repeat others byte by byte and count once", repeated)
    kept = (file for digest, file in first.items() if digest not in contradictory)
    return sorted(kept, key=lambda file: file.digest)


def _drop_test_duplicates(files: Sequence[PictureFile], tested: Set[str]) -> list[PictureFile]:
    """Leave out what is in the test split, too: a network would be tested on what it has learnt by heart."""
    kept = [file for file in files if file.digest not in tested]
    if len(kept) < len(files):
        log.warning(
            "%d training picture(s) are in the test folder, too, and are not trained on", len(files) - len(kept)
        )
    return kept


def _choose_test_files(files: Sequence[PictureFile]) -> set[PictureFile]:
    """Return the files of the test split: those of the lowest digests, but never all of a class."""
    chosen = {file for file in files if int(file.digest[:16], 16) < TEST_SHARE * 2**64}
    last = {file.label: file for file in files}  # of each class, the one of the highest digest
    return chosen - set(last.values())


def _decode(files: Sequence[PictureFile], size: int, bad: BadFiles) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images uint8 (N, 3, size, size), labels int64 (N,) and paths of the N files that can be decoded."""

    def pixels(file: PictureFile) -> NDArray[np.uint8] | PictureError:
        try:
            return picture_pixels(open_picture(read_picture(file.path), MAX_OWN_PIXELS), size)
        except PictureError as error:
            return error

    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    used: list[PictureFile] = []
    with _in_threads(pixels, files, "decoding") as decoded:
        for file, found in zip(files, decoded, strict=True):
            if isinstance(found, PictureError):
                bad.add(file.path, str(found))
            else:
                images[len(used)] = torch.from_numpy(found)
                used.append(file)
    labels = torch.tensor([file.label for file in used], dtype=torch.int64)
    return images[: len(used)], labels, tuple(str(file.path) for file in used)


def _check_enough(root: Path, split: str, labels: Tensor, classes: Sequence[str]) -> None:
    """Raise DataError if there is nothing to test on, or a class without a picture to train on."""
    if split != "train" and not len(labels):
        raise NoTestSet(f"{root} has no picture to test on: add pictures, or make sub-folders 'train' and 'test'")
    if split == "train":
        for name, count in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
            if not count:
                raise DataError(f"class {name!r} of {root} has no picture to train on, of those that can be used")


def _name_of(root: Path) -> str:
    """Return the folder's name with what a checkpoint's name may hold."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._")
    return name[:60] or "folder"
