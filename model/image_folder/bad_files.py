"""Files of a folder of pictures that cannot be used: named at the end, or fatal at once."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from model.data import DataError
from model.pictures.files import PICTURE_SUFFIXES, PictureError, StorageError

log = logging.getLogger(__name__)

OnBadImage = Literal["skip", "fail"]

MAX_NAMED = 20
MAX_REASONS = 3  # in a line

# Of files that are called as pictures are, so many that cannot be decoded are no accident if they are the most.
MANY_BAD = 20


class BadFiles:
    """Files that cannot be used: collected to be named at the end, or fatal at once.

    `places` are folders in the root, by name, whose pictures are counted by themselves: those of a test or a training.
    """

    def __init__(self, root: Path, on_bad_image: OnBadImage, places: Collection[str] = ()) -> None:
        self.root = root
        self.on_bad_image = on_bad_image
        self.places = places
        self.lines: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.pictures: Counter[str] = Counter()  # by place: files that are called as pictures are
        self.bad_pictures: Counter[str] = Counter()

    def expect(self, paths: Iterable[Path]) -> None:
        """Count files that are about to be read."""
        self.pictures.update(self._place_of(path) for path in paths if is_called_a_picture(path))

    def add_picture(self, path: Path, error: PictureError) -> None:
        """Take note of what is wrong with a file that was expected. Raises DataError as `add` does."""
        self.add(path, error)
        if is_called_a_picture(path):
            self.bad_pictures[self._place_of(path)] += 1

    def add(self, path: Path, error: PictureError) -> None:
        """Take note of what is wrong with a file below the root.

        Raises DataError if bad files are fatal, and in any case for a StorageError: who trained on what a failing disk
        still gives would not notice what is missing.
        """
        line = f"{str(path.relative_to(self.root))!r}: {error}"  # repr: names may hold line breaks
        if isinstance(error, StorageError):
            raise DataError(f"{line}, so it is not left out") from error
        if self.on_bad_image == "fail":
            raise DataError(f"{line} (--on-bad-image skip goes on without such files)") from error
        self.lines.append(line)
        self.reasons[str(error).partition(":")[0]] += 1

    def report(self) -> None:
        """Log the first names, how many there are, and of what kinds where not all are named."""
        for line in self.lines[:MAX_NAMED]:
            log.warning("skipped %s", line)
        if self.lines:
            more = f", the first {MAX_NAMED} are named above" if len(self.lines) > MAX_NAMED else ""
            log.warning("skipped %d file(s) that cannot be used%s", len(self.lines), more)
        if len(self.lines) > MAX_NAMED:
            log.warning("of these: %s", "; ".join(f"{count} {reason}" for reason, count in self.reasons.most_common()))

    def check_share(self) -> None:
        """Raise DataError if most of a place's pictures, and MANY_BAD at least, are bad: the rest is no sample."""
        for place, bad in self.bad_pictures.items():
            if bad >= max(MANY_BAD, self.pictures[place] // 2 + 1):
                reasons = "; ".join(f"{count} {reason}" for reason, count in self.reasons.most_common(MAX_REASONS))
                raise DataError(
                    f"{bad} of {self.pictures[place]} pictures in {self.root / place} cannot be decoded ({reasons}): "
                    "more than half, so the others are not taken for the whole; mend those, or move them elsewhere"
                )

    def _place_of(self, path: Path) -> str:
        """Return the place that a file lies in, "" where places do not matter."""
        if not self.places:
            return ""
        name = path.relative_to(self.root).parts[0]
        return name if name in self.places else ""


def is_called_a_picture(path: Path) -> bool:
    """Return whether a file's name is one of a picture, and not of what programs put beside one."""
    return path.suffix.lower() in PICTURE_SUFFIXES or not path.suffix
