"""What a run must know of the checkpoint that it starts from."""

from __future__ import annotations

from model.checkpoint import Checkpoint, content_digest
from model.data import DataError, Dataset, held_out_mask


def digest(source: Checkpoint) -> str:
    """Return the SHA-256 (hex) of what a run takes of a checkpoint: weights, network, classes, mean and std.

    Not the file's: what is recorded in the metadata meanwhile makes no other run.
    """
    metadata = source.metadata
    taken = {
        "architecture": metadata.architecture,
        "classes": metadata.classes,
        "mean": metadata.mean,
        "std": metadata.std,
    }
    return content_digest(taken, source.stored)


def held_out_but_seen(source: Checkpoint, dataset: Dataset, fingerprint: str, count: int) -> int:
    """Return how many of the `count` images that a run holds out of `dataset` its initial weights were trained on.

    `fingerprint` is the dataset's. Of weights that were trained on other images nothing is known: 0. Raises DataError
    if so many cannot be held out.
    """
    now = held_out_mask(dataset, count)
    trained_on = source.metadata.dataset
    if trained_on.get("fingerprint") != fingerprint or not isinstance(trained_on.get("held_out_images"), int):
        return 0
    try:
        before = held_out_mask(dataset, trained_on["held_out_images"])
    except DataError:  # by nobody's run
        return 0
    return int((now & ~before).sum())
