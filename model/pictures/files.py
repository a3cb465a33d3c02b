"""Picture files on this machine, and how large they may be. Without Pillow and NumPy, for a quick --help."""

from __future__ import annotations

import stat
from pathlib import Path

# The service takes this by default; pictures of one's own are trusted to be as large as cameras make them.
SERVED_PIXELS = 4096 * 4096
MAX_OWN_PIXELS = 8192 * 8192
MAX_FILE_BYTES = 256 << 20


class PictureError(ValueError):
    """A file is no picture that can be used; the message says why in a few plain words."""


class UnreadFormat(PictureError):
    """A file is a picture of a known format that is not read here; the message says what to save it as."""


def read_picture(path: Path) -> bytes:
    """Return a file's bytes. Raises PictureError."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise PictureError("a folder: give its files")
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise PictureError("not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise PictureError(f"larger than {MAX_FILE_BYTES >> 20} MiB")
        return path.read_bytes()
    except OSError as error:
        raise PictureError(f"cannot be read: {error.strerror}") from error
