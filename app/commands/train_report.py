"""The report at the end of a training run: its checkpoint's scores on the test set, and pictures."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.endings import ResultLines
from app.commands.labelled_data import load_split

if TYPE_CHECKING:
    import torch

    from model.data import Dataset
    from model.evaluate import Scores

log = logging.getLogger(__name__)


def report(arguments: argparse.Namespace, path: Path, device: torch.device, lines: ResultLines) -> None:
    """Measure the finished checkpoint on the test set, once, and write figures and pictures to the run's folder.

    The scores are printed to `lines`. Raises DataError if the test set cannot be read, or has other classes than were
    trained on.
    """
    from model import checkpoint
    from model.data import NoTestSet
    from model.datasets import check_classes
    from model.evaluate import as_result, score_checkpoint
    from model.extras import MissingExtra
    from model.report import write_report
    from model.training.finish import ENDED_EARLY
    from model.training.run_folder import RunFolder

    dataset, probabilities = None, None
    try:
        dataset = load_split(arguments, split="test")
    except NoTestSet as error:
        print(f"resnet: no test set, so only the learning curves are drawn: {error}", file=sys.stderr)
    if dataset is not None:
        source = checkpoint.load(path)
        check_classes(dataset, source.metadata.classes, str(path))  # a folder may have changed meanwhile
        log.info("measuring on %d test images", len(dataset))
        scores, probabilities = score_checkpoint(source, dataset, device)
        result = as_result(source.metadata.name, source.version, "checkpoint", scores.to_dict())
        early = source.metadata.recipe.get(ENDED_EARLY)
        RunFolder(arguments.out).write_json("evaluation.json", result | ({ENDED_EARLY: early} if early else {}))
        lines.print(
            (f"after {early['epochs']} of {early['of']} epochs: " if early else "") + _in_short(scores, dataset)
        )
    try:
        write_report(arguments.out, arguments.out / "metrics.jsonl", dataset, probabilities)
    except MissingExtra as error:
        print(f"resnet: no pictures: {error}", file=sys.stderr)


def _in_short(scores: Scores, dataset: Dataset) -> str:
    """Return the line of scores; beside top-1 stand the number of images and the share of the commonest class."""
    counts = dict(zip(dataset.classes, dataset.labels.bincount(minlength=len(dataset.classes)).tolist(), strict=True))
    commonest = max(counts, key=lambda name: counts[name])
    per_class = {name: share for name, share in scores.per_class.items() if share is not None}
    worst = min(per_class, key=lambda name: per_class[name])
    return (
        f"test top-1 {scores.top1:.4f} of {scores.images} images "
        f"({counts[commonest] / scores.images:.4f} by always answering {commonest}), "
        f"balanced accuracy {scores.balanced_accuracy:.4f}, ece {scores.ece:.4f} (15 bins), "
        f"worst class {worst} {per_class[worst]:.4f} of {counts[worst]}"
    )
