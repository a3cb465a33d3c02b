"""Picture files on this machine, and how large they may be. Without Pillow and NumPy, for a quick --help."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

# The service takes this by default; pictures of one's own are trusted to be as large as cameras make them.
SERVED_PIXELS = 4096 * 4096
MAX_OWN_PIXELS = 8192 * 8192
MAX_FILE_BYTES = 256 << 20

# How the names of pictures end, in lower case, also of some that are not read here.
PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".heic", ".heif", ".avif", ".tif", ".tiff"}
)

# For these the file or its name is to blame, such as a link that leads nowhere: others can still be read. For any other
# error it is the disk, the share or this machine, and the file may be fine.
OF_THE_FILE = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}
)
OF_THE_MACHINE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class PictureError(ValueError):
    """A file is no picture that can be used; the message says why in a few plain words."""


class UnreadFormat(PictureError):
    """A file is a picture of a known format that is not read here; the message says what to save it as."""


class StorageError(PictureError):
    """A file cannot be read, and that is no fault of its own; the message says what is to blame."""


def unreadable(error: OSError) -> PictureError:
    """Return what is wrong with a file that could not be read or looked at."""
    said = f"cannot be read: {error.strerror}"
    if error.errno in OF_THE_FILE:
        return PictureError(said)
    whose = "this machine" if error.errno in OF_THE_MACHINE else "the disk or share that it is on"
    return StorageError(f"{said}: {whose} fails, not the file")


def read_picture(path: Path) -> bytes:
    """Return a file's bytes. Raises PictureError: StorageError where the file is not to blame."""
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
        raise unreadable(error) from error
