"""Bytes of an image file -> uint8 array (3, S, S), in threads but for tiny ones, with errors that clients may see.

How a file becomes pixels is defined in model.pictures.codec, for training and service alike.
"""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.errors import DeadlinePassed, ServiceError, TooManyPixels, UndecodableImage
from app.threads import in_thread
from model.pictures.codec import PictureTooLarge, open_picture, picture_pixels
from model.pictures.files import PictureError, UnreadFormat
from model.pictures.plain_png import read_plain_png

# A picture this small is decoded in less time than a hop to another thread takes.
TINY_BYTES = 16 << 10
TINY_PIXELS = 128 * 128

# What can be much longer unpacked than it is in the file: a PNG's texts and profiles; and what Pillow takes apart in
# Python: EXIF's tags, those of a JPEG of several pictures, Photoshop's resources. By the first two bytes of a file:
# other formats have no such parts. Files of more parts than ordinary ones have take as long.
SLOW_PARTS = {
    b"\x89P": (b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"exif"),
    b"\xff\xd8": (b"Exif", b"MPF\0", b"Photoshop 3.0"),
    b"RI": (b"EXIF",),
}
TINY_READS = 256

Decoded = NDArray[np.uint8] | ServiceError
# What a body holds: a file to be decoded, an image that is ready, or what is wrong with it.
Entry = bytes | Decoded
Result = TypeVar("Result")


def decode(data: bytes, size: int, max_pixels: int) -> NDArray[np.uint8]:
    """Decode an image file to RGB and bring it to uint8 (3, size, size) by the evaluation transform.

    Animations count by their first frame; EXIF orientation is obeyed; transparency is laid over white.
    Raises TooManyPixels and UndecodableImage.
    """
    plain = _plain(data, size, max_pixels)
    return _finish(_open(data, max_pixels), size) if plain is None else plain


def _plain(data: bytes, size: int, max_pixels: int) -> NDArray[np.uint8] | None:
    """Decode what needs neither to be looked into nor to be transformed; None for all else."""
    return read_plain_png(data, size) if size * size <= max_pixels else None


def _open(data: bytes, max_pixels: int, max_reads: int | None = None) -> Image.Image:
    """Read the header; no pixel is decoded yet."""
    try:
        return open_picture(data, max_pixels, max_reads)
    except PictureTooLarge as error:
        raise TooManyPixels(max_pixels) from error
    except UnreadFormat as error:
        raise UndecodableImage(UndecodableImage.unread_text) from error
    except PictureError as error:
        raise UndecodableImage from error


def _finish(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Decode the pixels and transform them."""
    try:
        return picture_pixels(image, size)
    except PictureError as error:
        raise UndecodableImage from error


def _without_stack(error: ServiceError) -> ServiceError:
    """Take from an error what it holds of the calls that it came through, the picture and its pixels among it.

    In a list that one of these calls holds, it would be garbage in a circle: hundreds of MB until Python looks for it.
    """
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


class Decoder:
    """Decodes the images of a request: a tiny one on the spot, all others in a bounded pool of threads."""

    def __init__(self, size: int, max_pixels: int, threads: int) -> None:
        self.size = size
        self.max_pixels = max_pixels
        self.threads = threads
        # What Pillow warns of in damaged files would go to the log, and stay in memory: Python remembers each text.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._begun: dict[int, float] = {}
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="decode")

    async def run(self, function: Callable[[], Result], deadline: float) -> Result:
        """Run work on a body in the pool. Raises DeadlinePassed at `deadline`, a time.monotonic()."""
        work = [function]
        del function  # by which the stack of what is raised would keep the body, too
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await in_thread(self._pool, self._timed, work)
        except TimeoutError as error:
            raise DeadlinePassed from error
        finally:
            work.clear()  # what waits for a thread stays in the pool's queue, and would keep the body

    def _timed(self, work: list[Callable[[], Result]]) -> Result:
        """Run a piece of work, and let `stalled_s` know since when it runs."""
        thread = threading.get_ident()
        self._begun[thread] = time.monotonic()
        try:
            return work.pop()()
        finally:
            del self._begun[thread]

    def stalled_s(self) -> float:
        """Return for how many seconds every thread has been busy with one piece of work, none coming to its end."""
        begun = list(self._begun.values())
        return time.monotonic() - max(begun) if len(begun) == self.threads else 0.0

    async def decode_all(self, entries: Sequence[Entry], deadline: float) -> list[Decoded]:
        """Return, for each entry in order, uint8 (3, size, size) or what is wrong with it.

        Raises DeadlinePassed at `deadline`, a time.monotonic(); files that are not begun by then never are.
        """
        decoded = self.decode_here(entries)
        return await self.decode_in_threads(entries, deadline) if decoded is None else decoded

    def decode_here(self, entries: Sequence[Entry]) -> list[Decoded] | None:
        """Return what `decode_all` would, if it takes no longer than a hop to a thread: a tiny file, or arrays."""
        if len(entries) == 1:
            alone = self._try_inline(entries[0])
            return None if alone is None else [alone]
        ready = [entry for entry in entries if not isinstance(entry, bytes)]
        return ready if len(ready) == len(entries) else None

    async def decode_in_threads(self, entries: Sequence[Entry], deadline: float) -> list[Decoded]:
        """Return what `decode_all` does."""
        share = -(-len(entries) // self.threads)
        parts = [entries[i : i + share] for i in range(0, len(entries), share)]
        decoded = await asyncio.gather(
            *(self.run(partial(self._decode_some, part, deadline), deadline) for part in parts)
        )
        return [result for part in decoded for result in part]

    def _try_inline(self, file: Entry) -> Decoded | None:
        """Decode a tiny image right here; None if it is not tiny, or may take long all the same."""
        if not isinstance(file, bytes):
            return file
        if len(file) > TINY_BYTES:
            return None
        plain = _plain(file, self.size, self.max_pixels) if self.size * self.size <= TINY_PIXELS else None
        if plain is not None or any(part in file for part in SLOW_PARTS.get(file[:2], ())):
            return plain
        try:
            image = _open(file, self.max_pixels, TINY_READS)
            return _finish(image, self.size) if image.width * image.height <= TINY_PIXELS else None
        except UndecodableImage:  # or of too many parts to tell so here
            return None
        except ServiceError as error:
            return _without_stack(error)

    def _decode_some(self, entries: Sequence[Entry], deadline: float) -> list[Decoded]:
        done: list[Decoded] = []
        for entry in entries:
            self._begun[threading.get_ident()] = now = time.monotonic()  # each of many pictures is progress
            if now >= deadline:
                raise DeadlinePassed
            try:
                done.append(decode(entry, self.size, self.max_pixels) if isinstance(entry, bytes) else entry)
            except ServiceError as error:
                done.append(_without_stack(error))
        return done

    def close(self) -> None:
        """End the pool's threads once they are idle."""
        self._pool.shutdown(wait=False, cancel_futures=True)
