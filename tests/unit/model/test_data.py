import hashlib
import pickle
import tarfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision.datasets.utils import extract_archive

from model.data import (
    DataError,
    Dataset,
    channel_statistics,
    hold_out,
    load_cifar10,
    load_cifar100,
    proportional_shares,
)
from model.transforms import CIFAR10_MEAN, CIFAR10_STD


def numbered(count: int = 60, classes: int = 3) -> Dataset:
    """Make a dataset whose images hold their own number."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 8, 8).contiguous()
    return Dataset("toy", "train", images, torch.arange(count) % classes, tuple("abcdefghij"[:classes]))


def numbers(dataset: Dataset) -> list[int]:
    return dataset.images[:, 0, 0, 0].tolist()


def test_hold_out_is_disjoint_and_complete() -> None:
    rest, held = hold_out(numbered(), 12)
    assert (len(rest), len(held)) == (48, 12)
    assert sorted(numbers(rest) + numbers(held)) == list(range(60))
    assert (rest.split, held.split) == ("train", "held-out")


def test_hold_out_keeps_images_and_labels_together() -> None:
    for part in hold_out(numbered(), 12):
        assert part.labels.tolist() == [number % 3 for number in numbers(part)]


def test_hold_out_takes_the_same_share_of_every_class() -> None:
    _, held = hold_out(numbered(), 12)
    assert held.labels.bincount(minlength=3).tolist() == [4, 4, 4]


def test_hold_out_depends_on_no_runs_seed() -> None:
    splits = []
    for run_seed in (1, 2):
        torch.manual_seed(run_seed)
        splits.append(numbers(hold_out(numbered(), 12)[1]))
    assert splits[0] == splits[1]


def test_in_the_order_of_digests_the_first_of_each_class_are_held_out() -> None:
    """Images that are added take places of their own among them, and the held-out ones stay almost the same."""
    rest, held = hold_out(replace(numbered(), in_digest_order=True), 12)
    assert numbers(held) == list(range(12))
    assert (len(rest), rest.in_digest_order) == (48, True)


def test_hold_out_of_nothing_keeps_everything() -> None:
    rest, held = hold_out(numbered(), 0)
    assert numbers(rest) == list(range(60))
    assert len(held) == 0


@pytest.mark.parametrize("count", [58, 60, 63, -3])
def test_impossible_hold_out_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"cannot hold out {count} of 60 images: each of the 3 classes keeps .* 57"):
        hold_out(numbered(), count)


@pytest.mark.parametrize(
    ("count", "shares"),
    [
        (0, [0, 0, 0]),
        (1, [1, 0, 0]),
        (2, [2, 0, 0]),
        (3, [1, 1, 1]),
        (12, [10, 1, 1]),
        (30, [25, 4, 1]),
        (57, [49, 7, 1]),
    ],
)
def test_unbalanced_classes_give_in_proportion_and_keep_one(count: int, shares: list[int]) -> None:
    unbalanced = replace(numbered(), labels=torch.tensor([0] * 50 + [1] * 8 + [2] * 2))
    rest, held = hold_out(unbalanced, count)
    assert held.labels.bincount(minlength=3).tolist() == shares
    assert sorted(numbers(rest) + numbers(held)) == list(range(60))


def test_class_of_one_image_or_none_gives_nothing() -> None:
    few = replace(numbered(9), labels=torch.tensor([0] * 8 + [2]))
    assert hold_out(few, 7)[1].labels.tolist() == [0] * 7


@pytest.mark.parametrize("count", [50, 263, 1000, 2000])
def test_shares_are_within_one_of_exact_where_nothing_limits_them(count: int) -> None:
    of_each = [700, 90, 110, 400, 1000, 333]
    shares = proportional_shares(count, of_each)
    assert sum(shares) == count
    for share, images in zip(shares, of_each, strict=True):
        assert abs(share - count * images / sum(of_each)) < 1


def test_grey_levels_of_large_images_are_counted_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, each is a number of eight bytes: 1024 images of this size would take half a gigabyte a channel."""
    images = torch.randint(0, 256, (70, 3, 256, 256), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    count, counted = torch.Tensor.bincount, []
    monkeypatch.setattr(
        torch.Tensor, "bincount", lambda part, **given: counted.append(len(part)) or count(part, **given)
    )
    mean, std = channel_statistics(images)
    assert max(counted) == 1024 * 64**2
    assert sum(counted) == images.numel()
    exact = (images / 255).double()
    assert mean == pytest.approx(exact.mean(dim=(0, 2, 3)).tolist(), abs=1e-6)
    assert std == pytest.approx(exact.std(dim=(0, 2, 3)).tolist(), abs=1e-6)


class Compared(int):
    """A number that counts how often it, or what comes of it, is compared; too often is an error."""

    times = 0

    def __lt__(self, other: int) -> bool:
        Compared.times += 1
        assert Compared.times < 4_000_000
        return int.__lt__(self, other)

    def __add__(self, other: int) -> "Compared":
        return Compared(int.__add__(self, other))

    def __sub__(self, other: int) -> "Compared":
        return Compared(int.__sub__(self, other))

    def __mul__(self, other: int) -> "Compared":
        return Compared(int.__mul__(self, other))

    __radd__, __rmul__ = __add__, __mul__


def test_thousands_of_classes_are_shared_out_without_comparing_each_with_each() -> None:
    of_each = [Compared(2 + label % 19) for label in range(20_000)]
    shares = proportional_shares(sum(of_each) // 10, of_each)
    assert sum(shares) == sum(of_each) // 10
    assert Compared.times > len(of_each)  # it counts what is compared


@pytest.mark.parametrize(("count", "classes"), [(5000, 10), (5000, 100), (10, 10)])
def test_balanced_classes_are_split_as_they_always_were(count: int, classes: int) -> None:
    """The shipped checkpoint's temperature was fitted on this split: equal shares, the first of a seeded order."""
    labels = torch.randint(0, classes, (50_000,), generator=torch.Generator().manual_seed(3)).argsort() % classes
    dataset = replace(numbered(50), images=torch.arange(50_000)[:, None], labels=labels, classes=("x",) * classes)
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([order[labels[order] == label][: count // classes] for label in range(classes)])
    assert torch.equal(hold_out(dataset, count)[1].images[:, 0], expected.sort().values)


def test_fingerprint_sees_pixels_labels_and_names() -> None:
    dataset = numbered()
    images, labels = dataset.images.clone(), dataset.labels.clone()
    images[7, 1, 2, 3] += 1
    labels[7] = 2
    variants = [
        dataset,
        replace(dataset, images=images),
        replace(dataset, labels=labels),
        replace(dataset, classes=("a", "b", "d")),
    ]
    assert numbered().fingerprint() == dataset.fingerprint()
    assert len({variant.fingerprint() for variant in variants}) == 4


def test_missing_cifar10_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_cifar10(tmp_path / "nowhere", train=True)
    for part in (str(tmp_path / "nowhere"), "cifar-10-batches-py", "--root", "--download"):
        assert part in str(caught.value)


def write_cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write 20 training and 5 test images in CIFAR-100's own format, and have torchvision expect their MD5."""
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    def batch(count: int) -> dict[str, Any]:
        data = np.random.default_rng(count).integers(0, 256, (count, 3072), dtype=np.uint8)
        return {"data": data, "fine_labels": [5 * n % 100 for n in range(count)], "coarse_labels": [0] * count}

    monkeypatch.setattr(CIFAR100, "train_list", [["train", write("train", batch(20))]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", write("test", batch(5))]])
    digest = write("meta", {"fine_label_names": [f"fine{n}" for n in range(100)], "coarse_label_names": ["coarse"]})
    monkeypatch.setattr(CIFAR100, "meta", {"filename": "meta", "key": "fine_label_names", "md5": digest})


def test_cifar100_has_its_fine_labels_and_its_own_mean_and_std(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cifar100(tmp_path, monkeypatch)
    train, test = load_cifar100(tmp_path, train=True), load_cifar100(tmp_path, train=False)
    assert (train.name, train.split, test.split) == ("cifar100", "train", "test")
    assert train.images.shape == (20, 3, 32, 32)
    assert (len(test), len(train.classes), train.classes[7]) == (5, 100, "fine7")
    assert train.labels.tolist() == [5 * n for n in range(20)]
    pixels = np.random.default_rng(20).integers(0, 256, (20, 3072), dtype=np.uint8)
    assert train.images[3].flatten().tolist() == pixels[3].tolist()
    by_channel = pixels.reshape(20, 3, 1024) / 255
    assert train.mean == pytest.approx(by_channel.mean(axis=(0, 2)).tolist(), abs=1e-6)
    assert train.std == pytest.approx(by_channel.std(axis=(0, 2)).tolist(), abs=1e-6)


@pytest.mark.parametrize(
    ("load", "archive"), [(load_cifar10, "cifar-10-python.tar.gz"), (load_cifar100, "cifar-100-python.tar.gz")]
)
def test_download_without_network_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: Callable[..., Dataset], archive: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise URLError(OSError(-3, "Temporary failure in name resolution"))

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(
        DataError, match=r"cannot be downloaded to .*: .*name resolution; fetch https://.* elsewhere"
    ) as e:
        load(tmp_path, train=True, download=True)
    assert archive in str(e.value)


def test_of_several_processes_one_downloads_and_the_others_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as those of torchrun. Whoever downloads into the file that another one unpacks breaks it."""
    downloads: list[str] = []
    both = threading.Barrier(2)

    def download(_url: str, root: str, **_: Any) -> None:
        downloads.append(root)
        with suppress(threading.BrokenBarrierError):
            both.wait(timeout=0.2)  # for another one that downloads, too
        write_cifar100(Path(root), monkeypatch)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", download)
    root = tmp_path / "new" / "data"
    with ThreadPoolExecutor() as pool:  # two descriptors exclude each other, in one process or in two
        loaded = list(pool.map(lambda _: load_cifar100(root, train=True, download=True), range(2)))
    assert downloads == [str(root)]
    assert [len(dataset) for dataset in loaded] == [20, 20]


@pytest.mark.parametrize("kept", [0, 10, 100])
def test_a_damaged_archive_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: int) -> None:
    def truncated(_url: str, root: str, filename: str, **_: Any) -> None:
        archive = Path(root) / filename
        with tarfile.open(archive, "w:gz") as tar:
            tar.add(__file__)
        archive.write_bytes(archive.read_bytes()[:kept])
        extract_archive(archive)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", truncated)
    with pytest.raises(DataError, match=r"^CIFAR-10 cannot be downloaded to .*; fetch https://.* unpack it there$"):
        load_cifar10(tmp_path, train=True, download=True)


@pytest.mark.data
def test_normalisation_constants_are_the_training_sets_own(cifar10_root: Path) -> None:
    dataset = load_cifar10(cifar10_root, train=True)
    assert dataset.images.shape == (50_000, 3, 32, 32)
    assert dataset.images.dtype == torch.uint8
    assert dataset.labels.bincount().tolist() == [5000] * 10
    values = torch.arange(256, dtype=torch.double) / 255
    for channel in range(3):
        counts = dataset.images[:, channel].flatten().bincount(minlength=256).double()
        mean = float((counts * values).sum() / counts.sum())
        variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        assert mean == pytest.approx(CIFAR10_MEAN[channel], abs=1e-4)
        assert variance**0.5 == pytest.approx(CIFAR10_STD[channel], abs=1e-4)


@pytest.mark.data
def test_cifar10_test_split_is_complete(cifar10_root: Path) -> None:
    dataset = load_cifar10(cifar10_root, train=False)
    assert dataset.images.shape == (10_000, 3, 32, 32)
    assert dataset.labels.bincount().tolist() == [1000] * 10
    assert dataset.classes[3] == "cat"
    assert (dataset.name, dataset.split) == ("cifar10", "test")


@pytest.mark.parametrize("count", [0, 7, 100])
def test_the_rest_can_be_moved_within_the_datasets_memory(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr("model.data.ROWS_AT_ONCE", 16)
    images = torch.arange(150, dtype=torch.uint8)[:, None, None, None].repeat(1, 3, 8, 8)
    dataset = Dataset("toy", "train", images, torch.arange(150) % 3, ("a", "b", "c"), paths=tuple(map(str, range(150))))
    rest, held = hold_out(dataset, count)
    moved, also_held = hold_out(dataset, count, consume=True)
    assert moved.images.data_ptr() == dataset.images.data_ptr()
    for one, other in ((rest, moved), (held, also_held)):
        assert one.fingerprint() == other.fingerprint()
        assert (one.paths, one.split) == (other.paths, other.split)
