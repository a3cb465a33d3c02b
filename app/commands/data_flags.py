"""The flags that name a dataset and the paths of results, for training and evaluation alike.

Without torch, for a quick --help.
"""

from __future__ import annotations

import argparse
import errno
import os
import re
from pathlib import Path


def add_data(parser: argparse.ArgumentParser) -> None:
    """Declare --data, --root, --download and --on-bad-image."""
    parser.add_argument(
        "--data",
        type=dataset_name,
        default="cifar10",
        help="cifar10, cifar100, or folder:PATH, where PATH holds a folder of pictures for each class [%(default)s]",
    )
    parser.add_argument(
        "--root", type=Path, default=Path("data"), help="folder of CIFAR's extracted batches [%(default)s]"
    )
    parser.add_argument("--download", action="store_true", help="fetch CIFAR into --root if it is not there")
    parser.add_argument(
        "--on-bad-image",
        choices=["skip", "fail"],
        default="skip",
        help="skip: leave out and name files of a folder that are no pictures; fail: stop at the first [%(default)s]",
    )


def dataset_name(text: str) -> str:
    """Check a dataset's name, and return it with a folder's path as `_one_slash` has it.

    Raises argparse.ArgumentTypeError.
    """
    kind, _, path = text.partition(":")
    if text in {"cifar10", "cifar100"}:
        return text
    if kind == "folder" and path:
        return f"folder:{_one_slash(path)}"
    raise argparse.ArgumentTypeError(f"expected cifar10, cifar100 or folder:PATH, not {text!r}")


def named_path(text: str) -> Path:
    """Parse the path of a file or folder. Raises argparse.ArgumentTypeError for "", which Path takes for "."."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, not ''")
    return Path(_one_slash(text))


def _one_slash(path: str) -> str:
    """Return a path that begins with two slashes with one.

    POSIX lets two alone mean something of their own, so that Path and os.path keep them, each in its own way, and the
    same folder would be taken for two.
    """
    return re.sub(r"^//(?!/)", "/", path)


def check_writable(path: Path | None) -> None:
    """Raise OSError if no file can be written at `path`. Makes its folder; an existing file stays as it is."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir() or path.is_file():
        path.open("ab").close()
    elif not path.exists():  # else it is a pipe or a terminal, whose reader would take closing it for the end
        target = path.resolve()  # of a link
        target.open("xb").close()
        target.unlink()


class AmongPictures(ValueError):
    """A command would write among the pictures that it reads; the message names the flag to change."""


def check_outside(flag: str, folder: Path, data: str) -> None:
    """Raise AmongPictures if a folder to write to, named by `flag`, lies within the folder of pictures of --data."""
    kind, _, path = data.partition(":")
    if kind != "folder":
        return
    # Path.resolve raises where links lead in a circle, Path.expanduser where there is no such user.
    pictures = Path(os.path.realpath(os.path.expanduser(path)))  # noqa: PTH111
    if Path(os.path.realpath(folder)).is_relative_to(pictures):
        raise AmongPictures(
            f"{flag} {folder} lies within {pictures}, where the files in it would be taken for pictures: "
            f"give {flag} another folder"
        )


def check_out(out: Path, data: str) -> None:
    """Raise OSError if a run's folder can neither be written to nor made, AmongPictures if it lies among the pictures.

    Makes nothing yet: a run that fails before it trains is to leave nothing.
    """
    check_outside("--out", out, data)
    there = next(folder for folder in (out, *out.parents) if os.path.lexists(folder))
    if there.is_symlink() and not there.exists():
        raise FileNotFoundError(errno.ENOENT, "A link that leads nowhere", str(there))
    if not there.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
