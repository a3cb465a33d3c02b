"""The lines of `metrics.jsonl` as TensorBoard scalars, one point an epoch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.extras import MissingExtra

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

TAGS = {
    "loss": "loss/training",
    "held_out_nll": "loss/held_out_nll",
    "accuracy": "accuracy/training",
    "held_out_accuracy": "accuracy/held_out",
    "learning_rate": "learning_rate",
    "images_per_s": "images_per_s",
}


class TensorBoardLog:
    """Event files in `folder`, written by calling the object with a line of metrics.

    Raises MissingExtra at once if the package is absent, not after the first epoch.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra("--tensorboard", "tensorboard", error) from error
        self._make = SummaryWriter
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def __call__(self, line: dict[str, Any]) -> None:
        """Write the scalars of an epoch, and have them on disk for who is watching."""
        epoch = line["epoch"]
        if self._writer is None:
            # A resumed run may repeat an epoch that an earlier file holds: from here on, that file no longer counts.
            self._writer = self._make(str(self._folder), purge_step=epoch)
        for name, tag in TAGS.items():
            if name in line:
                self._writer.add_scalar(tag, line[name], epoch)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file, if there is one."""
        if self._writer is not None:
            self._writer.close()
