"""How a training run ends that does not come to its end. Nothing here needs torch."""

from __future__ import annotations


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was kept."""

    raised_by_all = False  # whether every process raises it at the same step, so that what connects them may be ended


class Stopped(TrainingError):
    """Training was asked to stop, and has saved its state; all processes stop together."""

    raised_by_all = True
