"""Scores written into the metadata of the checkpoint that they were measured of: `resnet evaluate --record`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.data_flags import check_writable

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

# What the same weights may differ by on the same images, on another processor.
SAME_TOP1 = 0.002

Measurements = tuple[dict[str, Any], ...]


def check_recordable(weights: Path) -> None:
    """Raise CheckpointError if the checkpoint is pinned, OSError if its folder takes no file to replace it with.

    Of a link, the file that it leads to is the one that would change: what pins either of them counts.
    """
    from model import checkpoint
    from model.metadata import CheckpointError

    file = _linked_file(weights)
    for path in dict.fromkeys((weights, file)):
        if checkpoint.pinned_sha256(path):
            pins = path.with_name(checkpoint.PINS)
            raise CheckpointError(f"--record would change {path}, which is pinned: remove {pins} first")
    check_writable(file.with_name(f".{file.name}.tmp"))


def record(source: Checkpoint, scores: dict[str, Any]) -> Checkpoint:
    """Write scores into a checkpoint's file, and return it as loaded from there: it has another version now.

    Raises CheckpointError if another file has taken its place since it was loaded: the scores are not that one's.
    """
    from model import checkpoint
    from model.metadata import CheckpointError

    if checkpoint.sha256_of(source.path) != source.sha256:
        raise CheckpointError(f"checkpoint {source.path}: replaced while it was measured, so nothing is recorded in it")
    measured = replace_scores(source.metadata.measured, scores)
    metadata = source.metadata.model_copy(update={"measured": measured})
    file = _linked_file(source.path)
    checkpoint.save(file, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)
    return checkpoint.load(source.path)


def replace_scores(measured: Measurements, scores: dict[str, Any]) -> Measurements:
    """Return a checkpoint's measurements with `scores` in the place of the old ones of the same split.

    A robustness table that was recorded before stays unless `scores` has one, if it was of the same images.
    """
    others = tuple(entry for entry in measured if entry["split"] != scores["split"])
    before = next((entry for entry in measured if entry["split"] == scores["split"]), {})
    same = before.get("images") == scores["images"] and abs(before["top1"] - scores["top1"]) <= SAME_TOP1
    return (*others, {**before, **scores} if same else scores)


def _linked_file(path: Path) -> Path:
    """Return the file that a path leads to through links, if any."""
    return Path(os.path.realpath(path))  # Path.resolve raises where links lead in a circle
