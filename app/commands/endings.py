"""How a command that is no service ends before its time: with a reason, by a signal, or without those who read it."""

from __future__ import annotations

import signal
from types import FrameType


class CommandError(SystemExit):
    """Ends a command with exit status 1 and its one line on standard error, "resnet: error: " and the reason."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"resnet: error: {reason}")


class Terminated(KeyboardInterrupt):
    """SIGTERM came. It ends a command as Ctrl-C does, also what catches or waits for that.

    Either way with its cleaning up, a line, and 128 + the signal's number.
    """


def terminate(_number: int, _frame: FrameType | None) -> None:
    """Handle SIGTERM. Raises Terminated."""
    raise Terminated


def word_and_status(error: KeyboardInterrupt) -> tuple[str, int]:
    """Return what a command says that one of the two ended, and its exit status."""
    if isinstance(error, Terminated):
        return "terminated", 128 + signal.SIGTERM
    return "interrupted", 128 + signal.SIGINT


class ResultLines:
    """Prints lines of results until their reader has gone, as `head` goes after the first ones.

    For a command that has more to do then; `gone` is what was raised.
    """

    def __init__(self) -> None:
        self.gone: BrokenPipeError | None = None

    def print(self, line: str) -> None:
        """Print a line at once, or nothing where nobody reads any more."""
        if self.gone is None:
            try:
                print(line, flush=True)
            except BrokenPipeError as error:
                self.gone = error
