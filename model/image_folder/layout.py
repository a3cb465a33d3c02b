"""What lies in a folder of pictures: sub-folders that are splits or classes, and the files of each class.

Nothing is opened here. What cannot be told is refused, in one line; files that cannot be reached are noted.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.data import DataError
from model.image_folder.bad_files import BadFiles, is_called_a_picture
from model.metadata import MAX_CLASSES, is_class_name
from model.pictures.files import PICTURE_SUFFIXES, unreadable

log = logging.getLogger(__name__)

# What sub-folders that are splits are called, in any case; anything else is a class.
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
}

# Folders that nobody made, in lower case: what archives made on a Mac hold beside the folders that were packed, and
# what systems and network drives put onto disks and shares. Thumbnails, snapshots and what was thrown away would be
# learnt and tested as pictures of their own.
NO_CLASSES = frozenset(
    {
        "__macosx",
        "$recycle.bin",
        "system volume information",
        "lost+found",
        "@eadir",
        "#recycle",
        "#snapshot",
        "@recycle",
    }
)

# What Windows leaves in folders that somebody has looked at, in any case.
NO_PICTURES = frozenset({"thumbs.db", "desktop.ini"})

NO_TEST = "add pictures, or make sub-folders 'train' and 'test'"

MAX_SOME = 5  # within a line

LEADS_NOWHERE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


@dataclass(frozen=True)
class PictureFile:
    """A file of a class folder; once read, the SHA-256 (hex) of its bytes, its shorter side and its area in pixels."""

    path: Path
    label: int
    digest: str = ""
    side: int = 0
    pixels: int = 0


def split_folders(root: Path) -> dict[str, Path]:
    """Return the sub-folders that are splits, by "train", "test" and "val"; none if the sub-folders are classes.

    Raises DataError where that cannot be told, or which of two it is.
    """
    folders = sub_folders(root)
    splits = {folder: SPLITS.get(folder.name.lower(), "") for folder in folders}
    found = sorted(set(splits.values()) - {""})
    if "train" not in found or len(found) < 2:
        return {}
    for folder in folders:
        same = [other.name for other in folders if splits[other] == splits[folder]]
        if not splits[folder]:
            raise DataError(
                f"{root} holds folders for {' and '.join(found)}, and also {folder.name!r}, which is none: if they are "
                "classes, give them other names"
            )
        if len(same) > 1:
            raise DataError(f"{root} holds more than one folder for {splits[folder]}: {' and '.join(same)}")
    return {split: folder for folder, split in splits.items()}


def sub_folders(root: Path) -> list[Path]:
    """Return the folders in a folder, sorted, but for hidden ones and those of NO_CLASSES. Raises DataError."""
    try:
        return sorted(entry for entry in root.iterdir() if not _is_passed_over(entry.name) and _is_folder(entry))
    except OSError as error:
        raise DataError(f"no folder of pictures at {root}: {error.strerror}") from error


def _is_passed_over(name: str) -> bool:
    """Return whether a folder of that name holds nothing of the data set: a hidden one, or one that nobody made."""
    return name.startswith(".") or name.lower() in NO_CLASSES


def _is_folder(path: Path) -> bool:
    """Return whether a path is a folder, or leads to one. Raises DataError where its disk does not say."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:
        if error.errno in LEADS_NOWHERE:
            return False
        raise DataError(f"{str(path)!r}: {unreadable(error)}") from error  # not one class fewer


def class_folders(root: Path) -> dict[str, Path]:
    """Return the folders of a split by the names of their classes, sorted.

    Letters that can be written in two ways, such as those with accents, count as written in the composed one (NFC):
    file systems and archives change one into the other. Raises DataError for names that cannot be told apart or
    printed.
    """
    folders: dict[str, Path] = {}
    for folder in sub_folders(root):
        name = unicodedata.normalize("NFC", folder.name)
        if not is_class_name(name):
            reason = "it is too long, or holds characters that cannot be printed"
            raise DataError(f"{root}: {name!r} is no name for a class: {reason}")
        if name in folders:
            raise DataError(f"{root} holds two folders of the class {name!r}, whose names are written differently")
        folders[name] = folder
    return dict(sorted(folders.items()))


def class_names(root: Path) -> tuple[str, ...]:
    """Return the names of the classes to train on.

    Raises DataError for fewer than two or more than MAX_CLASSES, for one that is rather a split, and as `class_folders`
    does.
    """
    folders = class_folders(root)
    names = tuple(folders)
    if len(names) < 2:
        one_split = bool(names) and names[0].lower() in SPLITS
        only = f": to train on {names[0]!r} alone give folder:{root / names[0]}" if one_split else ""
        inner = len(sub_folders(root / names[0])) if names and not only else 0
        if inner > 1:
            only = f": if the classes are the {inner} folders in it, give folder:{root / names[0]}"
        raise DataError(f"{root} must hold a sub-folder for each class, two at least: there are {len(names)}{only}")
    if len(names) > MAX_CLASSES:
        raise DataError(f"{root} holds {len(names)} sub-folders, and a checkpoint has {MAX_CLASSES} classes at most")
    _check_no_split(folders)
    return names


def _check_no_split(folders: Mapping[str, Path]) -> None:
    """Raise DataError for a class that is called as a split is and holds folders of pictures, as splits do."""
    for name, folder in folders.items():
        if name.lower() not in SPLITS:
            continue
        inner = [one.name for one in sub_folders(folder) if holds_pictures(one)]
        if len(inner) > 1:
            others = some_of(other for other in folders if other != name)
            raise DataError(
                f"{folder} would be one class beside {others}, and it holds folders of pictures ({some_of(inner)}): "
                f"if those are the classes, give folder:{folder}, or let nothing be beside it but folders of the same "
                f"classes for the test; if {name!r} is a class, put its pictures into it without folders or rename it"
            )


def holds_classes(split_dir: Path, classes: Sequence[str]) -> bool:
    """Return whether a folder for a split has pictures in class folders: those of a competition's test may lie loose.

    Raises DataError for a class that is none of `classes`, those of the training folder.
    """
    folders = class_folders(split_dir)
    _check_known(folders, split_dir, classes)
    return any(map(holds_pictures, folders.values()))


def _check_known(folders: Mapping[str, Path], root: Path, classes: Sequence[str]) -> None:
    """Raise DataError for class folders in `root` of a class that there is not."""
    unknown = [name for name in folders if name not in classes]
    if unknown:
        raise DataError(f"{root} has a class that the training folder does not have: {unknown[0]!r}")


def holds_pictures(folder: Path) -> bool:
    """Return whether a folder has files below it whose names are those of pictures. Raises DataError as BadFiles do."""
    return any(map(is_called_a_picture, _files_below(folder, BadFiles(folder, "skip"))))


def called_pictures(files: Sequence[PictureFile]) -> list[PictureFile]:
    """Return the files that are called as pictures are: what programs put beside one is read, and never decoded."""
    return [file for file in files if is_called_a_picture(file.path)]


def tell_of_doubts(root: Path, split_dirs: Mapping[str, Path]) -> None:
    """Warn of what is hardly meant so.

    Folders taken for classes that each hold the same ones, classes that differ in capital letters alone, and pictures
    of no class.
    """
    folders = class_folders(split_dirs.get("train", root))
    written = Counter(name.casefold() for name in folders)
    twice = [name for name in folders if written[name.casefold()] > 1]
    if twice:
        log.warning(
            "%s: classes that differ in capital letters alone are classes of their own: %s", root, some_of(twice)
        )
    common = set.intersection(*({inner.name for inner in sub_folders(folder)} for folder in folders.values()))
    if len(common) > 1:
        advice = (
            "if those are the classes, give a folder that holds them alone, or call the outer ones 'train' and 'test'"
        )
        log.warning("the classes are %s, each of which holds folders %s: %s", some_of(folders), some_of(common), advice)
    passed_over = {
        entry.name
        for place in (root, *split_dirs.values())
        for entry in place.iterdir()
        if entry.name.lower() in NO_CLASSES
    }
    if passed_over:
        log.info("%s: passed over, as folders that systems make: %s", root, some_of(passed_over))
    beside = [
        entry.relative_to(root)
        for place in (root, *split_dirs.values())
        for entry in sorted(place.iterdir())
        if entry.suffix.lower() in PICTURE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
    ]
    if beside:
        log.warning("%s: %d picture(s) in no class folder are not used: %s", root, len(beside), some_of(beside))


def some_of(names: Iterable[object], most: int = MAX_SOME) -> str:
    """Return a few of the names, sorted and quoted, and how many more there are."""
    shown = sorted(map(str, names))
    return ", ".join(map(repr, shown[:most])) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def list_files(
    folders: Mapping[str, Path], root: Path, classes: Sequence[str], bad: BadFiles, *, may_lack: bool
) -> list[PictureFile]:
    """List the files of each class in the order of their paths.

    `folders` are those of the split that lies in `root`. Raises DataError for one of a class that there is not, and for
    a class without files, unless some `may_lack` theirs.
    """
    _check_known(folders, root, classes)
    files: list[PictureFile] = []
    for label, name in enumerate(classes):
        found = sorted(_files_below(folders[name], bad)) if name in folders else []
        if not found and not may_lack:
            bad.report()  # it may say why
            raise DataError(f"class folder {folders[name]} holds no file that can be read")
        files += [PictureFile(file, label) for file in found]
    return files


def _files_below(folder: Path, bad: BadFiles) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders that are not hidden; links in a circle end."""
    seen: set[tuple[int, int]] = set()

    def note(error: OSError) -> None:
        bad.add(Path(error.filename), unreadable(error))

    for place, folders, names in os.walk(folder, followlinks=True, onerror=note):
        try:
            identity = Path(place).stat()
        except OSError as error:
            note(error)
            folders.clear()
            continue
        if (identity.st_dev, identity.st_ino) in seen:
            folders.clear()
            continue
        seen.add((identity.st_dev, identity.st_ino))
        folders[:] = sorted(name for name in folders if not _is_passed_over(name))
        yield from (Path(place, name) for name in names if name[0] != "." and name.lower() not in NO_PICTURES)
