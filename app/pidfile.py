"""Which process serves an address of this host, for `resnet reload`: a file that its process keeps locked.

The lock, not the file, says that the process lives: it goes with the process, however that ends, so that a file left
behind never leads to a signal for whoever has the number now.
"""

from __future__ import annotations

import fcntl
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

# Others may write to that folder: what they put there is neither followed nor waited for.
OPEN = os.O_NOFOLLOW | os.O_NONBLOCK

# Who listens there has the port at every address.
EVERYWHERE = ("0.0.0.0", "::")

log = logging.getLogger(__name__)


def pid_path(host: str, port: int) -> Path:
    """Return the file's place: the folder for temporary files, which service and `resnet reload` share.

    Raises FileNotFoundError where no such folder can be written to.
    """
    return Path(tempfile.gettempdir()) / f"resnet-{port}-{quote(host, safe=':')}.pid"


@contextmanager
def pid_file(host: str, port: int) -> Iterator[Callable[[], None]]:
    """Keep a locked file with this process' id while the block runs; without one, the service still serves.

    What it yields gives the file up before the end: who closes the port leaves it to the next one, drain or no drain.
    A port of 0 is not known to anyone beforehand, and has no file.
    """
    held: tuple[Path, int] | None = None
    try:
        if port:
            path = pid_path(host, port)
            held = path, _take(path)
    except OSError as error:  # of the folder, too: a read-only root file system may have none
        log.warning("no file for port %d, so `resnet reload` needs --pid: %s", port, error.strerror or error)

    def give_up() -> None:
        nonlocal held
        if held is not None:
            path, descriptor = held
            held = None
            with suppress(OSError):  # gone, or the folder has become read-only: the lock is what counts, and it goes
                path.unlink()
            os.close(descriptor)

    try:
        yield give_up
    finally:
        give_up()


def _take(path: Path) -> int:
    """Create and lock the file, write the id, and return its descriptor. Raises OSError, also when it is locked."""
    while True:
        descriptor = os.open(path, OPEN | os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(descriptor)
            if held.st_uid != os.geteuid():
                raise PermissionError(1, "it belongs to another user")
            if path.exists() and path.stat().st_ino == held.st_ino:  # else its last owner has just removed it
                os.ftruncate(descriptor, 0)
                os.write(descriptor, f"{os.getpid()}\n".encode())
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def find_pid(host: str, port: int) -> int | None:
    """Return the id of the process of this user that serves `port` at `host`, there alone or everywhere, or None.

    Raises PermissionError for a process of another user, FileNotFoundError without a folder for temporary files.
    """
    for address in (host, *EVERYWHERE):
        if (pid := _owner(pid_path(address, port))) is not None:
            return pid
    return None


def _owner(path: Path) -> int | None:
    try:
        descriptor = os.open(path, OPEN | os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user")
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return int(os.read(descriptor, 20) or 0) or None
    finally:
        os.close(descriptor)
    return None
