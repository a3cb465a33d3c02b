"""What a run must know of the checkpoint that it starts from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from model.checkpoint import Checkpoint, content_digest
from model.data import DataError, Dataset, held_out_mask
from model.image_folder.layout import some_of
from model.training.errors import TrainingError

log = logging.getLogger(__name__)


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


def named_by_digest(saved: Mapping[str, Any], source: Checkpoint | None) -> dict[str, Any]:
    """Return a saved run's identity as it names `source` today: older states have the file's version there.

    That of a file changes with its metadata.
    """
    if source is not None and saved.get("init_from") == source.version:
        return {**saved, "init_from": digest(source)}
    return dict(saved)


def check_same_classes(source: Checkpoint, classes: tuple[str, ...]) -> None:
    """Raise TrainingError if a share of the weights of `source` cannot be kept, since it is of other classes."""
    theirs = source.metadata.classes
    if theirs != classes:
        raise TrainingError(
            f"--keep-initial needs --init-from, a checkpoint of the same classes: this is {source.path}, "
            f"whose classes are {some_of(theirs)}, and those to train on are {some_of(classes)}"
        )


@dataclass(frozen=True)
class Seen:
    """How many of the held-out images the initial weights were trained on: `count`, or that many at least."""

    count: int = 0
    is_all: bool = True

    def never_trained_on(self, held: int) -> dict[str, int | None]:
        """Return what a checkpoint notes, of `held` images: how many no weights before it were trained on.

        None where that is unknown.
        """
        if self.is_all:
            return {"never_trained_on": held - self.count}
        return {"never_trained_on": None, "never_trained_on_at_most": held - self.count}

    def in_words(self) -> str:
        """Return what is to follow the number of held-out images; nothing where they are all new."""
        if self.is_all:
            return f", of which the initial weights had seen {self.count}" if self.count else ""
        least = f", {self.count} at least" if self.count else ""
        return f", of which it is unknown how many the initial weights had seen{least}"

    def tell(self, held: int, *, same_classes: bool, fitted: bool) -> None:
        """Log that the held-out images say more than they should, or that this is not known.

        `fitted` is whether the calibration is fitted on them. Of a fresh head, as other classes have, it is no warning
        that something is not known: it has seen none of them.
        """
        calibration = ", and so does the calibration that is fitted on them" if fitted else ""
        note = f"the held-out figures promise more than new images will show{calibration}"
        if self.count:
            least = "" if self.is_all else " at least"
            log.warning(
                "the weights of --init-from were trained on%s %d of the %d held-out images: %s",
                least,
                self.count,
                held,
                note,
            )
        elif held and not self.is_all:
            level = logging.WARNING if same_classes else logging.INFO
            log.log(
                level,
                "whether the weights of --init-from were trained on some of the %d held-out images is unknown: "
                "if so, %s",
                held,
                note,
            )


def held_out_but_seen(source: Checkpoint, dataset: Dataset, fingerprint: str, count: int) -> Seen:
    """Return how many of the `count` images that a run holds out of `dataset` its initial weights were trained on.

    By that run or by those before it: of a class, fewer images that are held out are always some of the more. The
    `fingerprint` is the dataset's. Which images others were, such as those of a folder before some were added, is not
    known. Raises DataError if so many cannot be held out.
    """
    now = held_out_mask(dataset, count)
    if not count:
        return Seen()
    trained_on = source.metadata.dataset
    never = trained_on.get("never_trained_on", trained_on.get("held_out_images"))  # older files have the latter alone
    is_all = isinstance(never, int)
    at_most = never if is_all else trained_on.get("never_trained_on_at_most")
    if trained_on.get("fingerprint") != fingerprint or not isinstance(at_most, int):
        return Seen(is_all=False)
    try:
        before = held_out_mask(dataset, at_most)
    except DataError:  # by nobody's run
        return Seen(is_all=False)
    return Seen(int((now & ~before).sum()), is_all)
