"""A folder of pictures, one sub-folder a class, as a dataset.

    class folders -> files -> read: digest, header -> split by digest -> decoded as the service does -> Dataset

What cannot be used is named and left out, or ends it all, as the caller wishes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from model.data import DataError, Dataset, NoTestSet, Split, channel_statistics
from model.hardware.available_memory import available_memory, bytes_in_words
from model.image_folder.bad_files import BadFiles, OnBadImage
from model.image_folder.files import contradictory_digests, decode, each_once, quiet_pillow, read_files
from model.image_folder.layout import (
    NO_TEST,
    PictureFile,
    class_folders,
    class_names,
    list_files,
    split_folders,
    tell_of_doubts,
)
from model.image_folder.near_duplicates import thumbnails
from model.image_folder.notices import tell_of_test_pictures, tell_of_training_pictures
from model.pictures.files import unreadable
from model.transforms import MAX_SIDE, MIN_SIDE

log = logging.getLogger(__name__)

TEST_SHARE = 0.1
MEMORY_SHARE = 0.8  # of what is available; the network, its batches and the held-out part need some, too

# What a picture takes besides its pixels, in bytes: its thumbnail, 192 float32, and three more of that size while they
# are compared; its path, its digest, and the object that holds both. Of 32 x 32 pixels it is more than they are.
BESIDES_PIXELS = 4 << 10


@dataclass(frozen=True)
class PictureFolder:
    """Where the classes lie: below `root` or, where there are folders for splits, below each of `split_dirs`."""

    root: Path
    split_dirs: Mapping[str, Path]
    classes: tuple[str, ...]

    @classmethod
    def at(cls, path: Path) -> PictureFolder:
        """Look what is there. Raises DataError if it is no folder of at least two classes."""
        try:
            root = path.expanduser()
        except RuntimeError:  # ~name of nobody here
            raise DataError(f"no folder of pictures at {path}: whose home that is cannot be told") from None
        split_dirs = split_folders(root)
        return cls(root, split_dirs, class_names(split_dirs.get("train", root)))

    @property
    def test_split(self) -> str | None:
        """The folder to test on, None where a share of all pictures is."""
        if not self.split_dirs:
            return None
        return "test" if "test" in self.split_dirs else "val"

    def places(self, split: Split) -> tuple[str | None, ...]:
        """Return which folders to load of a split, by their names in `split_dirs`: None is the one of all pictures."""
        if not self.split_dirs:
            return (None,)
        return {"train": ("train",), "test": (self.test_split,), "all": tuple(self.split_dirs)}[split]

    def files(self, places: Sequence[str | None], bad: BadFiles, *, may_lack: bool) -> list[PictureFile]:
        """List the files of some places, where classes `may_lack` theirs or not. Raises DataError."""
        files: list[PictureFile] = []
        for name in places:
            place = self.split_dirs[name] if name else self.root
            files += list_files(class_folders(place), place, self.classes, bad, may_lack=may_lack)
        return files


def load_folder(path: Path, *, split: Split, image_size: int = 32, on_bad_image: OnBadImage = "skip") -> Dataset:
    """Load the training or the test pictures of a folder, or all, as uint8 (N, 3, image_size, image_size).

    The classes are the sub-folders that are not hidden, sorted; a class has all files below its folder. Links are
    followed, each folder once. About a tenth of the pictures, chosen by their bytes, is the test split, so that what
    is added later moves nothing but the only picture of a class; sub-folders `train` and `test` (or `val`) instead of
    classes are taken as the split, and what is in both is not trained on. Of files that are equal byte by byte one
    counts, of two classes none, be they in one split or in two. Pictures are in the order of their digests, classes
    mixed.

    Raises DataError if the folder is not as described, leaves a class nothing to train on, or needs more than
    MEMORY_SHARE of the memory that is available, where a disk or share fails, and if most pictures cannot be decoded,
    with `on_bad_image` "fail" for the first file that is none; NoTestSet if there is nothing to test on. What is wrong
    with the test split is found, and told, when the training split is loaded, and once more when it is itself.
    """
    folder = PictureFolder.at(path)
    if not MIN_SIDE <= image_size <= MAX_SIDE:
        raise DataError(f"image size {image_size}: expected {MIN_SIDE} to {MAX_SIDE} pixels")
    if len(folder.split_dirs) == 3 and split != "all":
        unused, trained_on = folder.split_dirs["val"].name, folder.split_dirs["train"].name
        log.info("%s: %r is not used, since what is held out is taken from %r", folder.root, unused, trained_on)
    if split == "train":
        tell_of_doubts(folder.root, folder.split_dirs)
    bad = BadFiles(folder.root, on_bad_image)
    with quiet_pillow():
        files, test_files, found = _choose_files(folder, split, bad, image_size)
        test_images, test_labels, test_paths = decode(test_files, image_size, bad)
        tested = thumbnails(test_images)
        del test_images
        images, labels, paths = decode(files, image_size, bad)
    bad.report()
    bad.check_share()
    _check_enough(folder.root, split, labels, folder.classes)
    called = (folder.test_split or "test") if split == "test" else split
    suffix = "" if split == "all" else f" of the {called} split"
    log.info("%s: %d classes, %d pictures%s", folder.root, len(folder.classes), len(labels), suffix)
    if not folder.split_dirs and split == "test":
        note = "the test share of a folder without train and test; resnet evaluate --split all takes all"
        log.info("%s: %d of %d pictures: %s", folder.root, len(labels), found, note)
    mean, std = channel_statistics(images)
    name = _name_of(folder.root)
    dataset = Dataset(name, called, images, labels, folder.classes, mean, std, in_digest_order=True, paths=paths)
    if split == "train":
        tell_of_training_pictures(folder.root, files, dataset)
        tell_of_test_pictures(folder.root, dataset, tested, test_labels, test_paths)
    return dataset


def _choose_files(
    folder: PictureFolder, split: Split, bad: BadFiles, image_size: int
) -> tuple[list[PictureFile], list[PictureFile], int]:
    """Return the files to load, if it is to train on them also those to test on, and how many pictures were found.

    Three layouts: folders that are splits, of classes alone a share chosen by digests, or all there is.
    """
    to_train = split == "train"
    listed = folder.files(folder.places(split), bad, may_lack=not to_train)
    separate: list[PictureFile] = []
    if to_train and folder.test_split:
        separate = folder.files((folder.test_split,), bad, may_lack=True)
    drawn = split == "test" and not folder.test_split  # about a tenth of what is listed
    for count in (0 if drawn else len(listed), len(separate)):
        _check_memory(count, image_size)
    read = read_files(listed, bad)
    if folder.test_split and to_train:
        read_tests = read_files(separate, bad)
        unused = contradictory_digests([*read, *read_tests], bad)
        tested = each_once(read_tests, unused)
        files = _drop_test_duplicates(each_once(read, unused), {file.digest for file in tested})
        return files, tested, len(files)
    trained_on = _training_copies(folder, read) if folder.test_split and split == "test" else []
    files = each_once(read, contradictory_digests([*trained_on, *read], bad))
    if folder.test_split or split == "all":
        return files, [], len(files)
    share = _choose_test_files(files)
    tested = [file for file in files if file in share]
    if not to_train:
        _check_memory(len(tested), image_size)
        return tested, [], len(files)
    return [file for file in files if file not in share], tested, len(files)


def _training_copies(folder: PictureFolder, tested: Sequence[PictureFile]) -> list[PictureFile]:
    """Return the training files that equal one of the test files, of whatever class; others are not worth reading."""
    quiet = BadFiles(folder.root, "skip")  # what is wrong with the training pictures is told where they are used
    sizes = {_bytes_in(file, quiet) for file in tested} - {-1}
    listed = folder.files(("train",), quiet, may_lack=True)
    digests = {file.digest for file in tested}
    as_long = [file for file in listed if _bytes_in(file, quiet) in sizes]
    return [file for file in read_files(as_long, quiet) if file.digest in digests]


def _bytes_in(file: PictureFile, bad: BadFiles) -> int:
    """Return how long a file is, -1 if that cannot be told; then it is added to `bad`."""
    try:
        return file.path.stat().st_size
    except OSError as error:
        bad.add(file.path, unreadable(error))
        return -1


def _check_memory(count: int, size: int) -> None:
    """Raise DataError if so many pictures of that size are more than fits."""
    needed, available = count * (3 * size**2 + BESIDES_PIXELS), available_memory()
    if available is None or needed <= MEMORY_SHARE * available:
        return
    fitting = int((max(0.0, MEMORY_SHARE * available / count - BESIDES_PIXELS) / 3) ** 0.5)
    smaller = f"--image-size {fitting} or " if fitting >= MIN_SIDE else ""
    raise DataError(
        f"{count} pictures of {size}x{size} take {bytes_in_words(needed)} of memory, and of the "
        f"{bytes_in_words(available)} that are available to this process {MEMORY_SHARE:.0%} may be taken: "
        f"take {smaller}fewer pictures"
    )


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


def _check_enough(root: Path, split: str, labels: Tensor, classes: Sequence[str]) -> None:
    """Raise DataError if there is nothing to test on, or a class without a picture to train on."""
    if split != "train" and not len(labels):
        raise NoTestSet(f"{root} has no picture to test on: {NO_TEST}")
    if split == "train":
        for name, count in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
            if not count:
                raise DataError(f"class {name!r} of {root} has no picture to train on, of those that can be used")


def _name_of(root: Path) -> str:
    """Return the folder's name with what a checkpoint's name may hold."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._")
    return name[:60] or "folder"
