"""The files of a folder of pictures, read and decoded in threads.

What cannot be used is noted in BadFiles and left out.
"""

from __future__ import annotations

import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from model.hardware.cores import available_cores
from model.image_folder.bad_files import BadFiles
from model.image_folder.layout import PictureFile
from model.pictures.codec import open_picture, picture_pixels
from model.pictures.files import MAX_OWN_PIXELS, PictureError, read_picture

log = logging.getLogger(__name__)

MAX_THREADS = 8
TELL_EVERY_S = 60.0  # where there is no terminal for a bar

Result = TypeVar("Result")


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """Keep quiet what Pillow warns of in damaged files: what comes of it is told otherwise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _fit(
    work: Callable[[PictureFile], Result | PictureError], files: Sequence[PictureFile], what: str, bad: BadFiles
) -> Iterator[tuple[PictureFile, Result]]:
    """Yield in order each file that `work` can use, with what it made of it; the others are added to `bad`.

    The work is done in threads, with a bar on a terminal and else a line in the log each minute, where the log tells of
    such things: of the processes that torchrun starts only the first one's does. What is not begun when the iteration
    ends never is.
    """
    pool = ThreadPoolExecutor(min(MAX_THREADS, available_cores()), thread_name_prefix="pictures")
    try:
        results = pool.map(work, files)
        no_bar = None if log.isEnabledFor(logging.INFO) else True  # None: where there is no terminal
        shown = tqdm(results, total=len(files), desc=what, unit="file", disable=no_bar, leave=False)
        told_at = time.monotonic()
        for done, (file, result) in enumerate(zip(files, shown, strict=True)):
            if shown.disable and time.monotonic() - told_at >= TELL_EVERY_S:
                log.info("%s: %d of %d files", what, done, len(files))
                told_at = time.monotonic()
            if isinstance(result, PictureError):
                bad.add_picture(file.path, result)
            else:
                yield file, result
    finally:
        pool.shutdown(cancel_futures=True)


def read_files(files: Sequence[PictureFile], bad: BadFiles) -> list[PictureFile]:
    """Read every file once: return those that begin like pictures, in the same order, with their digests."""

    def look_at(file: PictureFile) -> PictureFile | PictureError:
        try:
            data = read_picture(file.path)
            width, height = open_picture(data, MAX_OWN_PIXELS).size
        except PictureError as error:
            return error
        digest = hashlib.sha256(data).hexdigest()
        return replace(file, digest=digest, side=min(width, height), pixels=width * height)

    bad.expect(file.path for file in files)
    return [read for _, read in _fit(look_at, files, "reading", bad)]


def contradictory_digests(files: Sequence[PictureFile], bad: BadFiles) -> set[str]:
    """Return the digests of read files that are in two classes, and take note of them: neither is to be used."""
    first: dict[str, PictureFile] = {}
    contradictory: set[str] = set()
    for file in files:
        same = first.setdefault(file.digest, file)
        if same.label != file.label:
            contradictory.add(file.digest)
            where = str(same.path.relative_to(bad.root))
            said = f"of two classes, of which neither is used: the same file as {where!r}"
            bad.add(file.path, PictureError(said))
    return contradictory


def each_once(files: Sequence[PictureFile], unused: Set[str]) -> list[PictureFile]:
    """Return read files, each content once, but for those of `unused` digests, in the order of digests."""
    first: dict[str, PictureFile] = {}
    repeated = 0
    for file in files:
        if file.digest not in unused and first.setdefault(file.digest, file) is not file:
            repeated += 1
    if repeated:
        log.info("%d file(s) repeat others byte by byte and count once", repeated)
    return [first[digest] for digest in sorted(first)]


def decode(files: Sequence[PictureFile], size: int, bad: BadFiles) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Return images uint8 (N, 3, size, size), labels int64 (N,) and paths of the N files that can be decoded."""

    def pixels(file: PictureFile) -> NDArray[np.uint8] | PictureError:
        try:
            return picture_pixels(open_picture(read_picture(file.path), MAX_OWN_PIXELS), size)
        except PictureError as error:
            return error

    images = torch.empty(len(files), 3, size, size, dtype=torch.uint8)
    used: list[PictureFile] = []
    for file, decoded in _fit(pixels, files, "decoding", bad):
        images[len(used)] = torch.from_numpy(decoded)
        used.append(file)
    labels = torch.tensor([file.label for file in used], dtype=torch.int64)
    return images[: len(used)], labels, tuple(str(file.path) for file in used)
