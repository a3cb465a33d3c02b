"""Files that change while the service runs, such as keys and a certificate: whether they have, without reading them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class FileWatch:
    """Remembers how `paths` were when they were last read. A file that is not there is a state as any other.

    Links are followed: Kubernetes exchanges a mounted Secret by a link to another folder.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self.paths = list(paths)
        self.remember()

    def remember(self) -> None:
        """Take the files as they are now; to be called before they are read, so that no later change is missed."""
        self._known = self._stamps()

    def changed(self) -> bool:
        """Whether any of them is another one than was remembered."""
        return self._stamps() != self._known

    def _stamps(self) -> list[tuple[int, ...] | None]:
        return [_stamp(path) for path in self.paths]


def _stamp(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written, exchanged, or made readable; None where it cannot be seen."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return seen.st_mtime_ns, seen.st_size, seen.st_ino, seen.st_dev, seen.st_mode, seen.st_uid, seen.st_gid
