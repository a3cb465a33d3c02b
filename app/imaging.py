"""Bytes of an image file -> uint8 array (3, S, S), in threads but for tiny ones, with errors that clients may see.

How a file becomes pixels is defined in model.pictures.codec, for training and service alike.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.decode_pool import DecodePool, Work
from app.errors import (
    DeadlinePassed,
    EngineFailed,
    ServiceError,
    TooManyPixels,
    TooManyPixelsTogether,
    UndecodableImage,
)
from app.pixel_budget import PixelBudget, RequestPixels
from app.settings import Settings
from model.pictures.codec import PictureTooLarge, open_picture, picture_pixels
from model.pictures.files import PictureError, UnreadFormat
from model.pictures.plain_png import read_plain_png

log = logging.getLogger(__name__)

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

# A request's files may have so many times the pixels of one: a few seconds of decoding. Two kilobytes can announce the
# most that one may have, so that the size of a body says little of them.
PIXELS_TOGETHER = 16

# All threads of a process decode so many pixels at the same time, or one picture of the most that one may have. That
# is half a gigabyte, a whole one of WebP; eight threads have room for eight megapixels each.
PIXELS_AT_ONCE = 8192 * 8192

Decoded = NDArray[np.uint8] | ServiceError
# What a body holds: a file to be decoded, an image that is ready, or what is wrong with it.
Entry = bytes | Decoded
Result = TypeVar("Result")


def decode(
    data: bytes,
    size: int,
    max_pixels: int,
    hold_pixels: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> NDArray[np.uint8]:
    """Decode an image file to RGB and bring it to uint8 (3, size, size) by the evaluation transform.

    Animations count by their first frame; EXIF orientation is obeyed; transparency is laid over white.
    `hold_pixels` is told what the header announces, before memory or time is spent on it: it may raise, or wait. What
    it returns is entered while pixels are decoded.
    Raises TooManyPixels, UndecodableImage, and MemoryError where memory is missing.
    """
    plain = _plain(data, size, max_pixels)
    if plain is not None:
        return plain
    image = _open(data, max_pixels)
    with hold_pixels(image.width * image.height):
        return _finish(image, size)


def _call(function: Callable[[], Result]) -> Result:
    return function()


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


class DecodingTimes(NamedTuple):
    """For how many seconds a request's images were decoded, in all threads together, and waited for the first one."""

    busy_s: float
    waited_s: float = 0.0


class Decoder:
    """Decodes the images of a request: a tiny one on the spot, all others in the threads of a `DecodePool`."""

    def __init__(self, size: int, max_pixels: int, threads: int, max_queue_s: float = math.inf) -> None:
        self.size = size
        self.max_pixels = max_pixels
        # What Pillow warns of in damaged files would go to the log, and stay in memory: Python remembers each text.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        self._pool = DecodePool(threads, max_queue_s)
        self._budget = PixelBudget(max(max_pixels, PIXELS_AT_ONCE))

    @classmethod
    def of(cls, card: dict[str, Any], settings: Settings) -> Decoder:
        """Return what decodes for the checkpoint that says `card` of itself."""
        return cls(card["input_size"], settings.max_pixels, settings.decode_threads_per_process, settings.max_queue_s)

    def run(self, function: Callable[[], Result], deadline: float) -> Work[Callable[[], Result], Result]:
        """Run work on a body in a thread, ahead of all decoding. Raises NotReady when closed."""
        return self._pool.submit(_call, [function], [0], deadline, ahead=True)

    def stalled_s(self) -> float:
        """Return for how many seconds every thread has been busy with one piece of work, none coming to its end."""
        return self._pool.stalled_s()

    def decode_here(self, entries: Sequence[Entry]) -> list[Decoded] | None:
        """Return, for each entry in order, uint8 (3, size, size) or what is wrong with it; None if threads have to.

        It takes no longer than a hop to a thread: a tiny file, or arrays.
        """
        if len(entries) == 1:
            alone = self._try_inline(entries[0])
            return None if alone is None else [alone]
        ready = [entry for entry in entries if not isinstance(entry, bytes)]
        return ready if len(ready) == len(entries) else None

    def require_room(self, size: int, deadline: float) -> None:
        """Raise QueueFull if the threads would not decode files of so many bytes in time.

        Raises DeadlinePassed after the deadline, a time.monotonic().
        """
        self._pool.require_room(size, deadline)

    def decode_in_threads(self, entries: Sequence[Entry], deadline: float) -> Work[Entry, Decoded]:
        """Begin to decode; the result is what `decode_here` returns.

        It raises TooManyPixelsTogether if files have more than PIXELS_TOGETHER times `max_pixels` in all. A picture
        waits in its thread while others that came before it are all of PIXELS_AT_ONCE that there is room for. Raises
        what `require_room` does, and NotReady when closed.
        """
        sizes = [len(entry) if isinstance(entry, bytes) else 0 for entry in entries]
        self.require_room(sum(sizes), deadline)
        most = PIXELS_TOGETHER * self.max_pixels
        pixels = RequestPixels(most, self._budget, deadline, free_pixels=TINY_PIXELS)
        work = self._pool.submit(partial(self._decode_one, pixels), entries, sizes, deadline)
        work.future.add_done_callback(lambda _future: pixels.end())
        return work

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
        except (UndecodableImage, MemoryError):  # or of too many parts to tell so here
            return None
        except ServiceError as error:
            return error.without_stack()

    def _decode_one(self, pixels: RequestPixels, entry: Entry) -> Decoded:
        if not isinstance(entry, bytes):
            return entry
        try:
            return decode(entry, self.size, self.max_pixels, pixels.held)
        except (TooManyPixelsTogether, DeadlinePassed):
            raise
        except ServiceError as error:
            return error.without_stack()
        except MemoryError:  # the file is not to blame: it is worth another try
            log.warning("out of memory for a picture")
            return EngineFailed()

    def close(self) -> None:
        """End the threads once they are done with their items; what is not finished is cancelled."""
        self._pool.close()
