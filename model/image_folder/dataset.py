"""A folder of pictures, one sub-folder a class, as a dataset.

    class folders -> files -> read: digest, header -> split by digest -> decoded as the service does -> Dataset

What cannot be used is named and left out, or ends it all, as the caller wishes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from model.data import DataError, Dataset, NoTestSet, Split, channel_statistics
from model.image_folder.bad_files import BadFiles, OnBadImage
from model.image_folder.files import contradictory_digests, decode, each_once, quiet_pillow, read_files
from model.image_folder.layout import (
    NO_TEST,
    PictureFile,
    called_pictures,
    class_folders,
    class_names,
    holds_classes,
    list_files,
    split_folders,
    tell_of_doubts,
)
from model.image_folder.memory_check import check_memory
from model.image_folder.near_duplicates import thumbnails
from model.image_folder.notices import tell_of_refused_pictures, tell_of_test_pictures, tell_of_training_pictures
from model.pictures.files import unreadable
from model.transforms import MAX_INPUT_SIDE, MIN_SIDE

log = logging.getLogger(__name__)

TEST_SHARE = 0.1


@dataclass(frozen=True)
class PictureFolder:
    """Where the classes lie: below `root` or, where there are folders for splits, below each of `split_dirs`.

    `test_split` is the one to test on, None where a share of all pictures is; `held_out_split` the one to hold out of
    training, None where a part of the training pictures is.
    """

    root: Path
    split_dirs: Mapping[str, Path]
    classes: tuple[str, ...]
    test_split: str | None = None
    held_out_split: str | None = None

    @classmethod
    def at(cls, path: Path) -> PictureFolder:
        """Look what is there. Raises DataError if it is no folder of at least two classes, the same in all splits."""
        try:
            root = path.expanduser()
        except RuntimeError:  # ~name of nobody here
            raise DataError(f"no folder of pictures at {path}: whose home that is cannot be told") from None
        split_dirs = split_folders(root)
        classes = class_names(split_dirs.get("train", root))
        there = [name for name in ("test", "val") if name in split_dirs]
        labelled = [name for name in there if holds_classes(split_dirs[name], classes)]
        test_split = next(iter(labelled or there), None)  # without pictures in classes, loading it will say so
        return cls(root, split_dirs, classes, test_split, "val" if labelled == ["test", "val"] else None)

    @property
    def more_to_test_on(self) -> str:
        """What to do where there is nothing to test on, or nothing of a class."""
        return f"add pictures to class folders in {self.name_of(self.test_split)!r}" if self.test_split else NO_TEST

    def name_of(self, split: str) -> str:
        """Return what the folder for a split is called."""
        return self.split_dirs[split].name

    def places(self, split: Split) -> tuple[str | None, ...]:
        """Return which folders to load of a split, by their names in `split_dirs`: None is the one of all pictures."""
        if not self.split_dirs:
            return (None,)
        return {"train": ("train",), "test": (self.test_split,), "all": tuple(self.split_dirs)}[split]

    def tell_of_val(self, held_out: int, *, with_val: bool | None) -> None:
        """Log what becomes of `val`, of which so many pictures are held out; None is `with_val` where nothing is."""
        if "val" not in self.split_dirs:
            return
        val = self.name_of("val")
        if self.test_split == "val":
            hollow = "test" in self.split_dirs
            why = f"{self.name_of('test')!r} has no class folders with pictures" if hollow else "there is no other one"
            log.info("%s: %r is the test part: %s", self.root, val, why)
        elif held_out:
            note = "the calibration is fitted on them, and recipes are compared by them"
            log.info("%s: %d pictures of %r are held out: %s", self.root, held_out, val, note)
        elif with_val:
            log.info("%s: %r is not used: it has no pictures in class folders that can be held out", self.root, val)
        elif with_val is False:
            trained_on = self.name_of("train")
            log.info("%s: %r is not used, since what is held out is taken from %r", self.root, val, trained_on)

    def files(self, places: Sequence[str | None], bad: BadFiles, *, may_lack: bool) -> list[PictureFile]:
        """List the files of some places, where classes `may_lack` theirs or not. Raises DataError."""
        files: list[PictureFile] = []
        for name in places:
            place = self.split_dirs[name] if name else self.root
            files += list_files(class_folders(place), place, self.classes, bad, may_lack=may_lack)
        return files


@dataclass(frozen=True)
class _Chosen:
    """The files to load, those to hold out and those to test on, each for training; how many pictures were found."""

    files: list[PictureFile]
    found: int
    held_out: Sequence[PictureFile] = ()
    tested: Sequence[PictureFile] = ()


def load_folder(
    path: Path, *, split: Split, image_size: int = 32, on_bad_image: OnBadImage = "skip", with_val: bool | None = None
) -> Dataset:
    """Load the training or the test pictures of a folder, or all, as uint8 (N, 3, image_size, image_size).

    The classes are the sub-folders that are not hidden, sorted; a class has all files below its folder. Links are
    followed, each folder once. About a tenth of the pictures, chosen by their bytes, is the test split, so that what
    is added later moves nothing but the only picture of a class; sub-folders `train` and `test` instead of classes are
    taken as the split, and what is in both is not trained on. A sub-folder `val` is the test split where `test` has no
    class folders with pictures; else `with_val` puts its pictures behind those of the training split, as the ones to
    hold out. Of files that are equal byte by byte one counts, of two classes none, be they in one split or in two.
    Pictures are in the order of their digests, classes mixed.

    Raises DataError if the folder is not as described, leaves a class nothing to train on, or needs more than
    MEMORY_SHARE of the memory that is available, where a disk or share fails, and if most pictures cannot be decoded,
    with `on_bad_image` "fail" for the first file that is none; NoTestSet if there is nothing to test on. What is wrong
    with the test split is found, and told, when the training split is loaded, and once more when it is itself.
    """
    folder = PictureFolder.at(path)
    if not MIN_SIDE <= image_size <= MAX_INPUT_SIDE:
        raise DataError(f"image size {image_size}: expected {MIN_SIDE} to {MAX_INPUT_SIDE} pixels")
    if split == "train":
        tell_of_doubts(folder.root, folder.split_dirs)
    bad = BadFiles(folder.root, on_bad_image, {place.name for place in folder.split_dirs.values()})
    with quiet_pillow():
        if split == "train" and folder.test_split:
            chosen = _choose_of_splits(folder, folder.held_out_split if with_val else None, bad, image_size)
        else:
            chosen = _choose_files(folder, split, bad, image_size)
        test_images, test_labels, test_paths = decode(chosen.tested, image_size, bad)
        tested = thumbnails(test_images)
        del test_images
        images, labels, paths = decode([*chosen.files, *chosen.held_out], image_size, bad)
    bad.report()
    bad.check_share()
    to_hold_out = {str(file.path) for file in chosen.held_out}
    held_out = sum(path in to_hold_out for path in paths)
    count = len(paths) - held_out
    _check_enough(folder, split, labels[:count])
    called = (folder.test_split or "test") if split == "test" else split
    suffix = "" if split == "all" else f" of the {called} split"
    log.info("%s: %d classes, %d pictures%s", folder.root, len(folder.classes), count, suffix)
    if not folder.split_dirs and split == "test":
        note = "the test share of a folder without train and test; resnet evaluate --split all takes all"
        log.info("%s: %d of %d pictures: %s", folder.root, count, chosen.found, note)
    tell_of_refused_pictures(folder.root, [*chosen.files, *chosen.held_out])
    mean, std = channel_statistics(images[:count])
    name = _name_of(folder.root)
    dataset = Dataset(name, called, images, labels, folder.classes, mean, std, in_digest_order=True, paths=paths)
    if split != "train":
        return dataset
    folder.tell_of_val(held_out, with_val=with_val)
    trained_on = replace(dataset, images=images[:count], labels=labels[:count], paths=paths[:count])  # views
    tell_of_training_pictures(folder.root, chosen.files, trained_on)
    tell_of_test_pictures(
        folder.root, trained_on, tested, test_labels, test_paths, more_to_test_on=folder.more_to_test_on
    )
    return replace(dataset, held_out=held_out)


def _choose_files(folder: PictureFolder, split: Split, bad: BadFiles, image_size: int) -> _Chosen:
    """Choose of a folder for the test, of classes alone, where a share is drawn by digests, or of all there is."""
    to_train = split == "train"
    listed = folder.files(folder.places(split), bad, may_lack=not to_train)
    drawn = split == "test" and not folder.test_split  # about a tenth of what is listed

    def check(count: int) -> None:
        if not drawn:
            check_memory(count, image_size, size_is_free=to_train)

    (read,) = _read_checked([listed], bad, check)
    trained_on = _training_copies(folder, read) if folder.test_split and split == "test" else []
    files = each_once(read, contradictory_digests([*trained_on, *read], bad))
    if folder.test_split or split == "all":
        return _Chosen(files, len(files))
    share = _choose_test_files(files)
    tested = [file for file in files if file in share]
    if not to_train:
        check_memory(len(tested), image_size, size_is_free=False)
        return _Chosen(tested, len(files))
    return _Chosen([file for file in files if file not in share], len(files), tested=tested)


def _choose_of_splits(folder: PictureFolder, held_out_split: str | None, bad: BadFiles, image_size: int) -> _Chosen:
    """Choose what to train on, to hold out and to test on, where there are folders for splits."""
    test_split = folder.test_split or ""
    places = [name for name in ("train", held_out_split, test_split) if name]
    listed = {name: folder.files((name,), bad, may_lack=name != "train") for name in places}

    def check(*counts: int) -> None:
        *to_train, to_test = counts  # decoded one after the other
        for count in (sum(to_train), to_test):
            check_memory(count, image_size, size_is_free=True)

    read = dict(zip(listed, _read_checked(listed.values(), bad, check), strict=True))
    unused = contradictory_digests([file for files in read.values() for file in files], bad)
    once = {name: each_once(files, unused) for name, files in read.items()}
    tested = once[test_split]
    files = _leave_out(once["train"], tested, f"training picture(s) are in the {test_split} folder", "trained on")
    held_out: list[PictureFile] = []
    if held_out_split:
        said = f"{held_out_split} picture(s) are in the test folder"
        held_out = _leave_out(once[held_out_split], tested, said, "held out")
        files = _leave_out(files, held_out, f"training picture(s) are in the {held_out_split} folder", "trained on")
    return _Chosen(files, len(files), held_out, tested)


def _read_checked(
    listed: Iterable[Sequence[PictureFile]], bad: BadFiles, check: Callable[..., None]
) -> list[list[PictureFile]]:
    """Read lists of files, as `read_files` does, and have `check` look at the numbers of pictures in them.

    Before they are read, by how they are called, and after it: of those that are called otherwise some may be pictures.
    """
    listed = list(listed)
    check(*(len(called_pictures(files)) for files in listed))
    read = [read_files(files, bad) for files in listed]
    check(*map(len, read))
    return read


def _training_copies(folder: PictureFolder, tested: Sequence[PictureFile]) -> list[PictureFile]:
    """Return the files of other splits that equal one of the test files, of whatever class; others are left unread."""
    quiet = BadFiles(folder.root, "skip")  # what is wrong with the training pictures is told where they are used
    sizes = {_bytes_in(file, quiet) for file in tested} - {-1}
    places = [name for name in ("train", folder.held_out_split) if name]
    listed = folder.files(places, quiet, may_lack=True)
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


def _leave_out(
    files: Sequence[PictureFile], others: Sequence[PictureFile], where: str, what_for: str
) -> list[PictureFile]:
    """Leave out what is among the others, too: a network would be tested on what it has learnt by heart."""
    digests = {file.digest for file in others}
    kept = [file for file in files if file.digest not in digests]
    if len(kept) < len(files):
        log.warning("%d %s, too, and are not %s", len(files) - len(kept), where, what_for)
    return kept


def _choose_test_files(files: Sequence[PictureFile]) -> set[PictureFile]:
    """Return the files of the test split: those of the lowest digests, but never all of a class."""
    chosen = {file for file in files if int(file.digest[:16], 16) < TEST_SHARE * 2**64}
    last = {file.label: file for file in files}  # of each class, the one of the highest digest
    return chosen - set(last.values())


def _check_enough(folder: PictureFolder, split: str, labels: Tensor) -> None:
    """Raise DataError if there is nothing to test on, or a class without a picture to train on."""
    root, classes = folder.root, folder.classes
    if split != "train" and not len(labels):
        raise NoTestSet(f"{root} has no picture to test on: {folder.more_to_test_on}")
    if split == "train":
        for name, count in zip(classes, labels.bincount(minlength=len(classes)).tolist(), strict=True):
            if not count:
                raise DataError(f"class {name!r} of {root} has no picture to train on, of those that can be used")


def _name_of(root: Path) -> str:
    """Return the folder's name with what a checkpoint's name may hold."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", root.resolve().name).strip("-._")
    return name[:60] or "folder"
