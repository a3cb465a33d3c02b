"""What lies in a folder of pictures, as it is loaded."""

from pathlib import Path

from model.data import Dataset
from model.image_folder.dataset import load_folder


def images_of(dataset: Dataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.images}


def both_splits(root: Path) -> tuple[Dataset, Dataset]:
    return load_folder(root, split="train"), load_folder(root, split="test")
