"""The progress of `resnet train`: a bar for a person who is watching, lines for a log."""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from model.training.time_left import duration_in_words

if TYPE_CHECKING:
    from tqdm import tqdm

log = logging.getLogger(__name__)

BAR = "{{l_bar}}{{bar}}| {{n_fmt}}/{{total_fmt}} steps [{{elapsed}}<{left}{{postfix}}]"


class ProgressBar:
    """Steps, time left, loss, accuracy and images/s on standard error, for a person who is watching."""

    every_s = 0.5

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show_step(self, step: int, steps: int, now: dict[str, float]) -> None:
        """Show that `step` of `steps` are done. The bar starts at the first `step`, which in a resumed run is not 0."""
        if self._bar is None:
            self._bar = self._open(step, steps)
        # tqdm's own estimate takes all steps for alike, whatever their image size.
        self._bar.bar_format = BAR.format(left=self._bar.format_interval(now["seconds_left"]))
        figures = f"loss={now['loss']:.3f}, accuracy={now['accuracy']:.1%}, images/s={now['images_per_s']:.0f}"
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(step - self._bar.n)

    @staticmethod
    def _open(step: int, steps: int) -> tqdm[Any]:
        from tqdm import tqdm

        # A terminal that does not know its size says 0 x 0, where tqdm would draw nothing.
        known = all(os.get_terminal_size(sys.stderr.fileno()))
        return tqdm(
            total=steps,
            initial=step,
            bar_format=BAR.format(left="?"),
            dynamic_ncols=known,
            ncols=None if known else 80,
            nrows=None if known else 24,
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class ProgressLines:
    """The same as a line in the log now and then, where nobody watches: in a container, under nohup, in CI.

    At an epoch's end there is none: the epoch has a line of its own. Nor for the first step: it says little of others.
    """

    every_s = 60.0

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._is_first = True

    def show_step(self, step: int, steps: int, now: dict[str, float]) -> None:
        """Log that `step` of `steps`, which all epochs together have, are done."""
        if not self._is_first and step % (steps // self._epochs):
            log.info(
                "step %d of %d (%.1f%%): loss %.3f, accuracy %.1f%%, %.0f images/s, about %s left",
                step,
                steps,
                100 * step / steps,
                now["loss"],
                100 * now["accuracy"],
                now["images_per_s"],
                duration_in_words(now["seconds_left"]),
            )
        self._is_first = False

    def close(self) -> None:
        """Do nothing: a line is whole when it is written."""
