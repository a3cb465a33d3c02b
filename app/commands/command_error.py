"""Why a command cannot do what it was asked for."""

from __future__ import annotations


class CommandError(SystemExit):
    """Ends a command with exit status 1 and its one line on standard error, "resnet: error: " and the reason."""

    def __init__(self, reason: object) -> None:
        super().__init__(f"resnet: error: {reason}")
