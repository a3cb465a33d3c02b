"""Datasets by the names that the command line knows them by."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from model.data import DataError, Dataset, Split, load_cifar10, load_cifar100
from model.image_folder.bad_files import BadFiles, OnBadImage
from model.image_folder.dataset import TEST_SHARE, PictureFolder, load_folder
from model.image_folder.layout import called_pictures, some_of

CIFAR = {"cifar10": load_cifar10, "cifar100": load_cifar100}
CIFAR_SIZE = 32


def load_dataset(
    name: str,
    root: Path,
    *,
    split: Split,
    download: bool = False,
    image_size: int = CIFAR_SIZE,
    on_bad_image: OnBadImage = "skip",
    with_val: bool | None = None,
) -> Dataset:
    """Load the training or the test split, or all of both, of "cifar10", "cifar100" (below `root`) or "folder:PATH".

    `image_size` in pixels, `on_bad_image` and `with_val` are a folder's, see model.image_folder.dataset. Raises
    DataError.
    """
    kind, _, path = name.partition(":")
    if kind == "folder" and path:
        options: dict[str, Any] = {"image_size": image_size, "on_bad_image": on_bad_image, "with_val": with_val}
        return load_folder(Path(path), split=split, **options)
    if name not in CIFAR:
        raise DataError(f"no dataset {name!r}: there are {', '.join(CIFAR)} and folder:PATH")
    if image_size != CIFAR_SIZE:
        raise DataError(f"the images of {name} are {CIFAR_SIZE} x {CIFAR_SIZE} pixels, not {image_size}")
    if split != "all":
        return CIFAR[name](root, train=split == "train", download=download)
    train, test = (CIFAR[name](root, train=part, download=download) for part in (True, False))
    images, labels = torch.cat((train.images, test.images)), torch.cat((train.labels, test.labels))
    return replace(train, split="all", images=images, labels=labels)


def named_folder(name: str) -> PictureFolder | None:
    """Return the folder of "folder:PATH" with its classes, None for other datasets, which are read within seconds.

    Raises DataError if it is no folder of at least two classes.
    """
    kind, _, path = name.partition(":")
    return PictureFolder.at(Path(path)) if kind == "folder" else None


def count_training_files(folder: PictureFolder) -> int:
    """Return about how many pictures of a folder will be trained on or held out.

    Those are the files that are called as pictures are. None is opened: which are damaged, or are there twice, does not
    show. Raises DataError.
    """
    files = folder.files(folder.places("train"), BadFiles(folder.root, "skip"), may_lack=True)
    pictures = len(called_pictures(files))
    return pictures if folder.test_split else round(pictures * (1 - TEST_SHARE))


def check_classes(dataset: Dataset, classes: tuple[str, ...], whose: str) -> None:
    """Raise DataError, naming a difference, if a dataset's classes are not those of a network in the same order."""
    if dataset.classes == classes:
        return
    ours, theirs = (sorted(set(a) - set(b)) for a, b in ((dataset.classes, classes), (classes, dataset.classes)))
    differences = [
        f"{owner} alone has {some_of(names, 3)}" for owner, names in (("the data", ours), (whose, theirs)) if names
    ]
    hint = ": an empty folder of that name will do" if theirs and not ours and dataset.paths is not None else ""
    raise DataError(
        f"the classes of {dataset.name} are not those of {whose}: "
        f"{'; '.join(differences) or 'their order differs'}{hint}"
    )
