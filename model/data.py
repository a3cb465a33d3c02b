"""Datasets as whole arrays in memory, and the split that keeps a part of the training set aside.

CIFAR-10 is 154 MB as uint8: small enough to live on the device, so batches are made by indexing, without workers.
`datasets.py` loads one by its name, `image_folder/` makes one of a folder of pictures.
"""

from __future__ import annotations

import fcntl
import hashlib
import heapq
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from model.batch_sizes import batch_size_for
from model.transforms import CIFAR10_MEAN, CIFAR10_STD, Triple

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10


Split = Literal["train", "test", "all"]

ROWS_AT_ONCE = 256
MAX_COUNTED = 1024  # images whose grey levels are counted at once, see batch_size_for: each number becomes 8 bytes
HOLD_OUT_SEED = 0


class DataError(ValueError):
    """The dataset is absent or not what it should be; the message says what to do."""


class NoTestSet(DataError):
    """There is nothing to test on, and nothing is wrong with that."""


@dataclass(frozen=True)
class Dataset:
    """Images uint8 (N, 3, S, S), labels int64 (N,), class names, and the channels' mean and std (fractions of 255).

    Mean and std are what a network trained on this split is to normalise by. A checkpoint brings its own: those of
    a test split are not used. `in_digest_order` says that the order comes from the images' own digests; `paths` are
    the N files, where each image has one. The last `held_out` images of a training set, if any, are not to be trained
    on: they are what `hold_out` takes, instead of drawing from the others.
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    mean: Triple = CIFAR10_MEAN
    std: Triple = CIFAR10_STD
    in_digest_order: bool = False
    paths: tuple[str, ...] | None = None
    held_out: int = 0

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def select(self, index: Tensor, split: str) -> Dataset:
        """Return the part of the dataset that `index`, int64 (M,), names, in that order."""
        paths = None if self.paths is None else tuple(self.paths[i] for i in index.tolist())
        images, labels = self.images[index], self.labels[index]
        return replace(self, split=split, images=images, labels=labels, paths=paths, held_out=0)

    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) of pixels, labels and class names."""
        digest = hashlib.sha256()
        for tensor in (self.images, self.labels):
            digest.update(tensor.reshape(-1).numpy().data)  # without a copy: there may be gigabytes
        digest.update("\0".join(self.classes).encode())
        return digest.hexdigest()


def load_cifar10(root: Path, *, train: bool, download: bool = False) -> Dataset:
    """Load CIFAR-10's training (50,000) or test (10,000) images from the folder that torchvision uses.

    Raises DataError if the extracted batches are not at `root` (or fail their MD5) and `download` is off or fails.
    """
    from torchvision.datasets import CIFAR10  # torchvision takes a second to import, which serving need not pay

    return _load_cifar(
        CIFAR10, "CIFAR-10", root, train=train, download=download, statistics=(CIFAR10_MEAN, CIFAR10_STD)
    )


def load_cifar100(root: Path, *, train: bool, download: bool = False) -> Dataset:
    """Load CIFAR-100's training (50,000) or test (10,000) images with their 100 fine labels.

    Raises DataError as `load_cifar10` does.
    """
    from torchvision.datasets import CIFAR100

    return _load_cifar(CIFAR100, "CIFAR-100", root, train=train, download=download)


def _load_cifar(
    kind: type[CIFAR10],
    title: str,
    root: Path,
    *,
    train: bool,
    download: bool,
    statistics: tuple[Triple, Triple] | None = None,
) -> Dataset:
    """Load what torchvision's class `kind` reads; mean and std are measured unless given."""
    try:
        with _one_at_a_time(root) if download else nullcontext():
            source = kind(str(root), train=train, download=download)
    # OSError: no network, no room, no permission. What is not a whole archive is told in three ways.
    except (RuntimeError, OSError, tarfile.TarError, zlib.error, EOFError) as error:
        if not download:
            raise DataError(
                f"no intact {title} under {root}: give the folder that holds {kind.base_folder} with --root, "
                "or add --download"
            ) from error
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise DataError(
            f"{title} cannot be downloaded to {root}: {reason}; fetch {kind.url} elsewhere and unpack it there"
        ) from error
    images = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(source.targets, dtype=torch.int64)
    mean, std = statistics or channel_statistics(images)
    name = title.lower().replace("-", "")
    return Dataset(name, "train" if train else "test", images, labels, tuple(source.classes), mean, std)


@contextmanager
def _one_at_a_time(root: Path) -> Iterator[None]:
    """Make a folder and let one process at a time work in it: the first one downloads, the others find what it left.

    They are those of torchrun, or other runs. Raises OSError.
    """
    root = root.expanduser()  # as torchvision does
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        with suppress(OSError):  # not every network's file system has locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def channel_statistics(images: Tensor) -> tuple[Triple, Triple]:
    """Return mean and standard deviation of each channel of uint8 (N, 3, S, S), N > 0, as fractions of 255.

    A standard deviation is at least one grey level, so that a channel that never changes can be divided by it.
    """
    counts = torch.zeros(3, 256, dtype=torch.int64)
    for part in torch.split(images, batch_size_for(images.shape[-1], MAX_COUNTED)):
        for channel in range(3):
            counts[channel] += part[:, channel].reshape(-1).bincount(minlength=256)
    shares = counts / counts.sum(dim=1, keepdim=True).double()
    values = torch.arange(256, dtype=torch.double) / 255
    mean = shares @ values
    std = (shares * (values - mean[:, None]).square()).sum(dim=1).sqrt().clamp_min(1 / 255)
    return _triple(mean), _triple(std)


def _triple(values: Tensor) -> Triple:
    red, green, blue = (round(value, 6) for value in values.tolist())
    return red, green, blue


def hold_out(dataset: Dataset, count: int, *, consume: bool = False) -> tuple[Dataset, Dataset]:
    """Split a training set into (the rest, `count` held-out images), every class in proportion to its images.

    The split does not depend on a run's seed, so that sibling runs hold out the same images. Where images
    are in the order of their digests, the first of each class are held out: what is added later moves few others, so
    that a network that goes on learning has hardly seen what it is calibrated on. Of a dataset that brings its
    `held_out` images along, those are taken, whatever their classes. Else every class keeps one image to train on;
    if `count` allows, each class that can gives one. With `consume` the rest is moved within the memory of `dataset`,
    which is then of no use any more: there may be gigabytes. Raises DataError if `count` is negative or more than that
    leaves, or not the number of images that are brought along.
    """
    held = held_out_mask(dataset, count)
    indices = torch.arange(len(dataset))
    held_out = dataset.select(indices[held], "held-out")
    kept = indices[~held]
    if not consume:
        return dataset.select(kept, "train"), held_out
    for start in range(0, len(kept), ROWS_AT_ONCE):
        part = kept[start : start + ROWS_AT_ONCE]  # none of which lies before `start`
        dataset.images[start : start + len(part)] = dataset.images[part]
    paths = None if dataset.paths is None else tuple(dataset.paths[i] for i in kept.tolist())
    images, labels = dataset.images[: len(kept)], dataset.labels[kept]
    return replace(dataset, split="train", images=images, labels=labels, paths=paths, held_out=0), held_out


def held_out_mask(dataset: Dataset, count: int) -> Tensor:
    """Return bool (N,): which images `hold_out` holds out. Raises DataError as it does."""
    check_hold_out(dataset, count)
    if dataset.held_out:
        return torch.arange(len(dataset)) >= len(dataset) - count
    of_each = dataset.labels.bincount(minlength=len(dataset.classes)).tolist()
    generator = torch.Generator().manual_seed(HOLD_OUT_SEED)
    order = torch.randperm(len(dataset), generator=generator)
    if dataset.in_digest_order:
        order = torch.arange(len(dataset))
    held = torch.zeros(len(dataset), dtype=torch.bool)
    by_class = torch.split(order[dataset.labels[order].argsort(stable=True)], of_each)
    for indices, share in zip(by_class, proportional_shares(count, of_each), strict=True):
        held[indices[:share]] = True
    return held


def check_hold_out(dataset: Dataset, count: int) -> None:
    """Raise DataError if `count` is negative, or more images than can be held out, or not those that are to be."""
    if dataset.held_out:
        if count != dataset.held_out:
            raise DataError(f"cannot hold out {count} images: {dataset.name} has {dataset.held_out} for that")
        return
    of_each = dataset.labels.bincount(minlength=len(dataset.classes)).tolist()
    spare = sum(max(0, images - 1) for images in of_each)
    if not 0 <= count <= spare:
        raise DataError(
            f"cannot hold out {count} of {len(dataset)} images: each of the {len(dataset.classes)} classes keeps at "
            f"least one to train on, which leaves {spare}"
        )


def proportional_shares(count: int, of_each: Sequence[int]) -> list[int]:
    """Split `count` over classes of `of_each` images by the largest remainder; no class gives its last image.

    `count` is at most what the classes can give. If it is at least the number of classes that can give one, each does.
    """
    total = sum(of_each)
    most = [max(0, images - 1) for images in of_each]
    least = [min(1, limit) for limit in most]
    if count < sum(least):
        least = [0] * len(most)
    shares = [
        min(max(count * images // total, low), high) for images, low, high in zip(of_each, least, most, strict=True)
    ]
    missing = count - sum(shares)
    step = 1 if missing > 0 else -1
    bounds = most if missing > 0 else least
    # A class's distance from its exact share, in images times `total`, the farthest first; ties go to the first class.
    distances = [
        (step * (share * total - count * images), label)
        for label, (share, images) in enumerate(zip(shares, of_each, strict=True))
        if share != bounds[label]
    ]
    heapq.heapify(distances)
    for _ in range(abs(missing)):
        distance, label = heapq.heappop(distances)
        shares[label] += step
        if shares[label] != bounds[label]:
            heapq.heappush(distances, (distance + total, label))
    return shares
