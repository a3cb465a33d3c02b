"""How SIGTERM and Ctrl-C end a command that is no service: with its cleaning up, a line, and 128 + their number."""

from __future__ import annotations

import signal
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It ends a command as Ctrl-C does, also what catches or waits for that."""


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM. Raises Terminated."""
    raise Terminated


def word_and_status(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return what a command says that one of the two ended, and its exit status."""
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    return "interrupted", 128 + signal.SIGINT
