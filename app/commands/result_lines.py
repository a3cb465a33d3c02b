"""Lines of results on standard output, for a command that has more to do when their reader has gone."""

from __future__ import annotations


class ResultLines:
    """Prints lines until their reader has gone, as `head` goes after the first ones; `gone` is what was raised then."""

    def __init__(self) -> None:
        self.gone: BrokenPipeError | None = None

    def print(self, line: str) -> None:
        """Print a line at once, or nothing where nobody reads any more."""
        if self.gone is None:
            try:
                print(line, flush=True)
            except BrokenPipeError as error:
                self.gone = error
