"""The labelled images that a command's flags name: those to train on, and those to evaluate a model on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.data import Dataset, Split


def load_split(arguments: argparse.Namespace, *, split: Split) -> Dataset:
    """Load the training or the test split that the flags of `resnet train` name. Raises DataError.

    The training split brings along what a folder has to be held out, unless --hold-out says how many others are.
    """
    from model.datasets import load_dataset

    return load_dataset(
        arguments.data,
        arguments.root,
        split=split,
        download=arguments.download,
        image_size=arguments.image_size,
        on_bad_image=arguments.on_bad_image,
        with_val=split == "train" and arguments.hold_out is None,
    )


def load_labelled(arguments: argparse.Namespace, source: Checkpoint | None, api_key: str | None) -> Dataset:
    """Load the images that `resnet evaluate` is to score: the first --limit of --split.

    They are brought to the size of the checkpoint `source` or, if that is None, of what the service at --url serves,
    which is asked with `api_key`. Raises DataError if their classes are others, ConnectionError without an answer.
    """
    import torch

    from model.data import DataError
    from model.datasets import CIFAR

    try:
        dataset = _load_as_wanted(arguments, source, api_key)
    except DataError as error:
        trained_on = source.metadata.dataset.get("name", arguments.data) if source else arguments.data
        if arguments.data.startswith("folder:") or trained_on == arguments.data:
            raise
        how = f"give --data {trained_on}" if trained_on in CIFAR else "give its pictures by --data folder:..."
        raise DataError(f"{error}; these weights are of {trained_on!r}: {how}") from error
    if arguments.limit and arguments.limit < len(dataset):
        dataset = dataset.select(torch.arange(arguments.limit), f"{dataset.split}[:{arguments.limit}]")
    return dataset


def _load_as_wanted(arguments: argparse.Namespace, source: Checkpoint | None, api_key: str | None) -> Dataset:
    """Load all of --split, and raise DataError if its classes are others than the model's."""
    from app.client import fetch_card
    from model.datasets import check_classes, load_dataset

    if source is None:
        card = fetch_card(arguments.url, api_key)
        size, classes, whose = card.input_size, card.classes, arguments.url
    else:
        size, classes, whose = source.metadata.input_size, source.metadata.classes, str(source.path)
    dataset = load_dataset(
        arguments.data,
        arguments.root,
        split=arguments.split,
        download=arguments.download,
        image_size=size,
        on_bad_image=arguments.on_bad_image,
    )
    check_classes(dataset, classes, whose)
    return dataset
