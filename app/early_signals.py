"""Signals that come to `resnet serve` before its server handles them (signals.py). Imports nothing that takes time."""

from __future__ import annotations

import os
import signal
from types import FrameType


class EarlyHangup:
    """Handles SIGHUP, which ends a process by default: that it came is remembered, to be obeyed later.

    Where it says that the terminal has gone that the service was started in, it ends the process.
    """

    def __init__(self) -> None:
        self.came = False
        self._in_terminal = os.isatty(0)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle the signal."""
        if self._in_terminal and not os.isatty(0):
            _end(number, frame)
        self.came = True


def handle_early_signals() -> None:
    """Let SIGTERM and SIGINT end the process from here on, and SIGHUP be remembered."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    signal.signal(signal.SIGHUP, EarlyHangup())


def _end(_number: int, _frame: FrameType | None) -> None:
    """End at once, which a container's first process would not do by default: it ignores SIGTERM."""
    os._exit(0)  # nothing was accepted yet
