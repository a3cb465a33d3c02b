import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.data import DataError, Dataset, hold_out, load_cifar10
from model.transforms import CIFAR10_MEAN, CIFAR10_STD


@pytest.fixture(scope="module")
def cifar10_root() -> Path:
    beside_the_repository = Path(__file__).parents[3].parent / "shared" / "data"
    root = Path(os.environ.get("CIFAR10_ROOT", beside_the_repository))
    if not (root / "cifar-10-batches-py").is_dir():
        pytest.skip(f"no CIFAR-10 under {root}: set CIFAR10_ROOT")
    return root


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


def test_hold_out_depends_on_its_own_seed_alone() -> None:
    splits = []
    for run_seed in (1, 2):
        torch.manual_seed(run_seed)
        splits.append(numbers(hold_out(numbered(), 12)[1]))
    assert splits[0] == splits[1]
    assert splits[0] != numbers(hold_out(numbered(), 12, seed=1)[1])


def test_hold_out_of_nothing_keeps_everything() -> None:
    rest, held = hold_out(numbered(), 0)
    assert numbers(rest) == list(range(60))
    assert len(held) == 0


@pytest.mark.parametrize("count", [10, 60, 63, -3])
def test_impossible_hold_out_is_refused(count: int) -> None:
    with pytest.raises(DataError, match=f"cannot hold out {count} of 60"):
        hold_out(numbered(), count)


def test_hold_out_of_more_than_a_class_has_is_refused() -> None:
    unbalanced = replace(numbered(), labels=torch.tensor([0] * 50 + [1] * 8 + [2] * 2))
    with pytest.raises(DataError, match="4 images of each class: 'c' has 2"):
        hold_out(unbalanced, 12)


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
