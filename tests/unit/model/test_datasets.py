from pathlib import Path

import pytest
import torch

from model.data import DataError, Dataset
from model.datasets import CIFAR, check_classes, load_dataset
from model.transforms import MAX_INPUT_SIDE, MIN_SIDE
from tests.pictures import KINDS, write_folder


def test_folder_is_loaded_by_its_path(tmp_path: Path) -> None:
    write_folder(tmp_path / "with:colon", 3)
    dataset = load_dataset(f"folder:{tmp_path}/with:colon", Path("unused"), split="train", image_size=16)
    assert (dataset.classes, dataset.images.shape[1:]) == (KINDS, (3, 16, 16))


@pytest.mark.parametrize("size", [MIN_SIDE, MAX_INPUT_SIDE])
def test_a_folder_is_brought_to_all_sizes_that_a_checkpoint_may_have(tmp_path: Path, size: int) -> None:
    """Of networks trained elsewhere, too: what is served can be scored."""
    write_folder(tmp_path, 2)
    dataset = load_dataset(f"folder:{tmp_path}", Path("unused"), split="all", image_size=size)
    assert dataset.images.shape == (6, 3, size, size)


def test_bad_images_are_treated_as_asked(tmp_path: Path) -> None:
    write_folder(tmp_path, 3)
    (tmp_path / "disc" / "a.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"'disc/a.txt'"):
        load_dataset(f"folder:{tmp_path}", Path("unused"), split="train", on_bad_image="fail")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_looked_for_below_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"no intact CIFAR-{name[5:]} under {tmp_path}"):
        load_dataset(name, tmp_path, split="train")


def test_all_of_cifar_are_its_training_and_its_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_root: Path, *, train: bool, download: bool) -> Dataset:
        images = torch.full((3 if train else 2, 3, 32, 32), int(train), dtype=torch.uint8)
        return Dataset("cifar10", "train" if train else "test", images, torch.arange(len(images)), ("a", "b", "c"))

    monkeypatch.setitem(CIFAR, "cifar10", load)
    everything = load_dataset("cifar10", Path("unused"), split="all")
    assert (everything.name, everything.split, everything.labels.tolist()) == ("cifar10", "all", [0, 1, 2, 0, 1])
    assert everything.images[:, 0, 0, 0].tolist() == [1, 1, 1, 0, 0]


@pytest.mark.parametrize("name", ["mnist", "folder", "folder:", "cifar10:x"])
def test_other_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=f"no dataset '{name}': there are cifar10, cifar100 and folder:PATH"):
        load_dataset(name, tmp_path, split="train")


def test_cifar_has_one_size(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cifar10 are 32 x 32 pixels, not 64"):
        load_dataset("cifar10", tmp_path, split="train", image_size=64)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (("ant", "bee", "cow"), "the data alone has 'cat'; the model alone has 'cow'"),
        (("ant", "bee"), "not those of the model: the data alone has 'cat'$"),
        (("ant", "bee", "cat", "d", "e", "f", "g"), "the model alone has 'd', 'e', 'f' and 1 more"),
        (("bee", "ant", "cat"), "their order differs"),
    ],
)
def test_other_classes_are_named(classes: tuple[str, ...], message: str) -> None:
    images = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    dataset = Dataset("toy", "test", images, torch.arange(3), ("ant", "bee", "cat"))
    check_classes(dataset, ("ant", "bee", "cat"), "the model")
    with pytest.raises(DataError, match=message):
        check_classes(dataset, classes, "the model")


def test_a_class_without_a_folder_can_have_an_empty_one() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    dataset = Dataset("toy", "all", images, torch.arange(2), ("ant", "bee"), paths=("a", "b"))
    with pytest.raises(DataError, match=r"the model alone has 'cat': an empty folder of that name will do$"):
        check_classes(dataset, ("ant", "bee", "cat"), "the model")
