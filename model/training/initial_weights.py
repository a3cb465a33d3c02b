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

    By that run or by those before it: of a class, fewer images that are held out are always some of the more. The
    `fingerprint` is the dataset's. Of weights that were trained on other images nothing is known: 0. Raises DataError
    if so many cannot be held out.
    """
    now = held_out_mask(dataset, count)
    trained_on = source.metadata.dataset
    never = trained_on.get("never_trained_on", trained_on.get("held_out_images"))  # older files have the latter alone
    if trained_on.get("fingerprint") != fingerprint or not isinstance(never, int):
        return 0
    try:
        before = held_out_mask(dataset, never)
    except DataError:  # by nobody's run
        return 0
    return int((now & ~before).sum())
