"""Packages that only some commands need: the words for one that is not installed."""

from __future__ import annotations


class MissingExtra(RuntimeError):
    """A package of an optional extra cannot be imported; the message is one line and says how to install it."""

    def __init__(self, what: str, extra: str, reason: ImportError) -> None:
        command = f"pip install -c constraints.txt -e '.[{extra}]'"
        super().__init__(f"{what} needs the optional extra {extra!r} ({reason}): {command}")
