"""Datasets as whole arrays in memory, and the split that keeps a part of the training set aside.

CIFAR-10 is 154 MB as uint8: small enough to live on the device, so batches are made by indexing, without workers.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from model.transforms import CIFAR10_MEAN, CIFAR10_STD, Triple


class DataError(ValueError):
    """The dataset is absent or not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, 3, S, S), labels int64 (N,), class names, and the channels' mean and std (fractions of 255).

    Mean and std are those of the training split, for every split of a dataset.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Triple = CIFAR10_MEAN
    std: Triple = CIFAR10_STD

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def select(self, index: Tensor, split: str) -> Dataset:
        """Return the part of the dataset that `index`, int64 (M,), names, in that order."""
        return replace(self, split=split, images=self.images[index], labels=self.labels[index])

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of pixels, labels and class names."""
        digest = hashlib.sha256()
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.contiguous().numpy().tobytes())
        digest.update("\0".join(self.classes).encode())
        return digest.hexdigest()


def load_cifar10(root: Path, *, train: bool, download: bool = False) -> Dataset:
    """Load CIFAR-10's training (50,000) or test (10,000) images from the folder that torchvision uses.

    Raises DataError if the extracted batches are not at `root` (or fail their MD5) and `download` is off.
    """
    from torchvision.datasets import CIFAR10  # torchvision takes a second to import, which serving need not pay

    try:
        source = CIFAR10(str(root), train=train, download=download)
    except RuntimeError as error:
        raise DataError(
            f"no intact CIFAR-10 under {root}: give the folder that holds cifar-10-batches-py with --root, "
            "or add --download"
        ) from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(source.targets, dtype=torch.int64)
    return Dataset("cifar10", "train" if train else "test", images, labels, tuple(source.classes))


def hold_out(dataset: Dataset, count: int, seed: int = 0) -> tuple[Dataset, Dataset]:
    """Split a training set into (the rest, `count` held-out images), the same share of every class.

    The split depends on `seed` alone, not on a run's seed, so that sibling runs hold out the same images.
    Raises DataError if `count` is not a multiple of the number of classes, leaves nothing to train on, or is more
    than a class can give.
    """
    classes = len(dataset.classes)
    if count % classes or not 0 <= count < len(dataset):
        raise DataError(
            f"cannot hold out {count} of {len(dataset)} images: not a multiple of {classes} below the total"
        )
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset), generator=generator)
    held = torch.zeros(len(dataset), dtype=torch.bool)
    for label in range(classes):
        of_class = order[dataset.labels[order] == label]
        if len(of_class) < count // classes:
            few = f"{dataset.classes[label]!r} has {len(of_class)}"
            raise DataError(f"cannot hold out {count // classes} images of each class: {few}")
        held[of_class[: count // classes]] = True
    indices = torch.arange(len(dataset))
    return dataset.select(indices[~held], "train"), dataset.select(indices[held], "held-out")
