"""The progress bar of `resnet train`, for a person who is watching."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class ProgressBar:
    """Steps, loss, accuracy and images/s on standard error, for a person who is watching."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show_step(self, step: int, steps: int, now: dict[str, float]) -> None:
        """Show that `step` of `steps` are done. The bar starts at the first `step`, which in a resumed run is not 0."""
        if self._bar is None:
            self._bar = self._open(step, steps)
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
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]",
            dynamic_ncols=known,
            ncols=None if known else 80,
            nrows=None if known else 24,
        )

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()
