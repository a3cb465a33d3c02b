"""Picture files -> pixels, by one definition for training on a folder of pictures and for the service.

Limits are checked on the header, before memory for pixels is spent. Whatever Pillow raises on damaged or hostile
bytes ends here: its messages can hold addresses, so there are plain words instead.
"""

from __future__ import annotations

import io
import re
import struct
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from model.pictures.files import PictureError, UnreadFormat
from model.pictures.first_frames import read_first_frames_only
from model.pictures.plain_png import SIGNATURE
from model.pictures.rgb import to_rgb
from model.transforms import evaluation_transform

# What phones, scanners and cameras save: their owner would look for damage in vain.
HEIF_BRANDS = frozenset({b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif", b"avis"})
TIFF_BEGINNINGS = (b"II*\0", b"MM\0*")

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Pillow walks through a file's parts in Python, a few reads a part: millions of empty ones, or of fill bytes between
# them, would take many seconds. So many reads take half a second, and ordinary files of 16 MB some ten thousand; larger
# ones may have one for so many bytes.
MAX_READS = 100_000
BYTES_A_READ = 1024

# Progressive files have about ten scans; thousands are a bomb for the CPU.
JPEG_SCAN_MARKER = b"\xff\xda"
MAX_JPEG_SCANS = 32
# Pillow puts them together one by one, each time copying all.
JPEG_EXIF_MARKER = b"Exif\0\0"
MAX_JPEG_EXIFS = 4
# Between a JPEG's segments and in its entropy-coded data this is a marker, but for those of restarts.
JPEG_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")
SOI, EOI, SOS, APP1 = 0xD8, 0xD9, 0xDA, 0xE1
# No length follows these, or Pillow reads none.
BARE_JPEG_MARKERS = frozenset({0x01, 0xC8, SOI, EOI, *range(0xF0, 0xFE)})

# Larger EXIF data is not looked at, nor is its text form in a PNG: each of its tags takes Python time. A JPEG's
# segment holds half of it.
MAX_EXIF_BYTES = 128 << 10
EXIF_KEYS = ("exif", "Raw profile type exif")
EXIF_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# A PNG has one colour profile; each chunk of one is unpacked, up to a megabyte.
PNG_PROFILE = b"iCCP"
MAX_PNG_PROFILES = 4

# How Pillow brings the grey of fewer bits to eight.
GREY_SCALES = {"L;2": 85, "L;4": 17}

# What Pillow puts where it has a PNG's texts as well, by their keywords, and goes by when it decodes.
PNG_PROPERTIES = frozenset({"transparency", "interlace", "bbox"})
PNG_INTERLACED_AT = 28
PNG_CHUNK = struct.Struct(">I4s")  # the length of what follows, and its kind
PNG_CHECKSUM_BYTES = 4

# Pillow decodes these BMPs pixel by pixel in Python.
MAX_RUN_LENGTH_PIXELS = 1 << 20

# Of all texts in a PNG, uncompressed; Pillow's own limit is 64 MB.
PngImagePlugin.MAX_TEXT_MEMORY = 8 << 20
# Pillow's own limit, which no setting could raise; `open_picture` has one of its caller's, and all are opened by it.
Image.MAX_IMAGE_PIXELS = None
read_first_frames_only()


class PictureTooLarge(PictureError):
    """The header announces more pixels than allowed."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(f"more than {max_pixels} pixels")


class BoundedReader(io.BytesIO):
    """A file in memory that can be read from so many times; then it raises PictureError."""

    def __init__(self, data: bytes, max_reads: int) -> None:
        super().__init__(data)
        self._reads_left = max_reads

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as a file does."""
        self._reads_left -= 1
        if self._reads_left < 0:
            raise PictureError("of too many parts")
        return super().read(size)


class WithoutTexts(dict[str | tuple[int, int], Any]):
    """Properties of a PNG, of which texts leave alone what decides how it is decoded."""

    def __init__(self, properties: dict[str | tuple[int, int], Any]) -> None:
        super().__init__(properties)
        for key in PNG_PROPERTIES & self.keys():
            if isinstance(self[key], str):
                del self[key]

    def __setitem__(self, key: str | tuple[int, int], value: object) -> None:
        """Set a property."""
        if key not in PNG_PROPERTIES or not isinstance(value, str):
            super().__setitem__(key, value)


def open_picture(data: bytes, max_pixels: int, max_reads: int | None = None) -> Image.Image:
    """Read the header of a picture file; no pixel is decoded yet.

    Raises PictureError: if too large PictureTooLarge, of a known format that is not read here UnreadFormat. The
    file is read from at most `max_reads` times, by default as often as an intact one may need. Raises MemoryError where
    memory is missing: the file may be fine.
    """
    if not data:
        raise PictureError("empty")
    # Pillow's WebP reader allocates its canvas when it opens the file, so its header is looked at first.
    width, height = _webp_canvas(data)
    if width * height > max_pixels:
        raise PictureTooLarge(max_pixels)
    _check_format(data)
    if data.startswith(b"\xff\xd8"):
        _check_jpeg(data)
    if data.startswith(b"\x89PNG") and data.count(PNG_PROFILE) > MAX_PNG_PROFILES:
        raise PictureError("a PNG of too many colour profiles")
    try:
        most = max_reads or max(MAX_READS, len(data) // BYTES_A_READ)
        image = Image.open(BoundedReader(data, most) if len(data) > most else io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        _forget_texts(image, data)
    except UnidentifiedImageError as error:
        raise PictureError("not an intact JPEG, PNG, WebP, GIF or BMP picture") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises many kinds on damaged files: OSError, SyntaxError, struct.error, ...
        raise PictureError("damaged") from error
    if width * height > max_pixels:
        raise PictureTooLarge(max_pixels)
    if width * height > MAX_RUN_LENGTH_PIXELS and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        raise PictureError("too large for a run-length encoded BMP")
    return image


def picture_pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Decode an opened picture to RGB and bring it to uint8 (3, size, size) by the evaluation transform.

    Animations count by their first frame; EXIF orientation is obeyed; transparency is laid over white. `image` is
    closed: callers that still know it, and the stacks of errors, keep no pixels. At its peak a pixel of a large
    picture takes 8 bytes; 12 of a progressive JPEG, whose coefficients libjpeg holds, and 14 of a WebP.
    Raises PictureError, and MemoryError where memory is missing: the header's size was within limits.
    """
    try:
        _scale_colour_key(image)
        image.load()
        return evaluation_transform(to_rgb(_apply_exif_orientation(image)), size)
    except MemoryError:
        raise
    except Exception as error:  # as above
        raise PictureError("damaged or cut short") from error
    finally:
        image.close()


def _forget_texts(image: Image.Image, data: bytes) -> None:
    """Take a PNG's texts from its properties, those that will be read behind its pixels as well."""
    if not isinstance(image, PngImagePlugin.PngImageFile) or image.png is None:
        return
    overwritten = isinstance(image.info.get("transparency"), str)
    image.info = image.png.im_info = WithoutTexts(image.info)
    if overwritten:
        _read_transparency(image.png, data)
    if data[PNG_INTERLACED_AT]:
        image.info["interlace"] = 1
    if image.tile and isinstance(image.tile[0].extents, str):
        image.tile = [image.tile[0]._replace(extents=(0, 0, *image.size))]


def _read_transparency(png: PngImagePlugin.PngStream, data: bytes) -> None:
    """Read a PNG's transparency again, in whose place a text behind it stood, and leave the file where it was."""
    at = len(SIGNATURE)
    while at + PNG_CHUNK.size <= len(data):
        length, kind = PNG_CHUNK.unpack_from(data, at)
        if kind == b"IDAT" or png.fp is None:
            return
        begin = at + PNG_CHUNK.size
        if kind == b"tRNS":
            before = png.fp.tell()
            png.fp.seek(begin)
            png.chunk_tRNS(begin, length)
            png.fp.seek(before)
        at = begin + length + PNG_CHECKSUM_BYTES


def _apply_exif_orientation(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; damaged EXIF data says nothing, nor does far too much of it.

    A picture that is turned is closed, so that both are there for a moment only.

    Pillow's `exif_transpose` would unpack all tags and pack them again, to write down that the picture is upright: for
    a few megabytes of them that takes seconds.
    """
    if not any("exif" in str(key).lower() or "xmp" in str(key).lower() for key in image.info):
        return image  # nothing can say so, and looking for it takes longer than a tiny picture's transform
    if any(len(image.info.get(key, "")) > MAX_EXIF_BYTES for key in EXIF_KEYS):
        return image
    turn = None
    with suppress(Exception):  # the picture itself is fine
        turn = EXIF_TRANSPOSITIONS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    if turn is None:
        return image
    turned = image.transpose(turn)
    image.close()
    return turned


def _scale_colour_key(image: Image.Image) -> None:
    """Bring the one transparent colour of a PNG to eight bits, as Pillow does with the pixels but not with it.

    Of 16 bits the higher half decides, as it does in the pixels.
    """
    key = image.info.get("transparency")
    if key is None or not isinstance(image, PngImagePlugin.PngImageFile) or not image.tile:
        return
    packed = image.tile[0].args
    if not isinstance(packed, str):
        return
    if packed in GREY_SCALES and isinstance(key, int):
        image.info["transparency"] = min(key * GREY_SCALES[packed], 255)
    elif packed == "RGB;16B" and isinstance(key, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _check_format(data: bytes) -> None:
    """Raise UnreadFormat for a picture of a format that is not read here, as far as its first bytes tell."""
    if data[4:8] == b"ftyp" and data[8:12] in HEIF_BRANDS:
        raise UnreadFormat("HEIC or AVIF, which is not read here: save it as JPEG")
    if data.startswith(TIFF_BEGINNINGS):
        raise UnreadFormat("TIFF or a camera's raw file, which is not read here: save it as JPEG or PNG")


def _check_jpeg(data: bytes) -> None:
    """Raise PictureError for a JPEG of too many scans or EXIF segments.

    Most files hold few of these bytes anywhere. What counts in the others is the picture's own segments: behind its
    end cameras put whole films and further pictures, and a profile or a preview can hold any bytes.
    """
    if data.count(JPEG_SCAN_MARKER) <= MAX_JPEG_SCANS and data.count(JPEG_EXIF_MARKER) <= MAX_JPEG_EXIFS:
        return
    scans = exifs = segments = 0
    at = len(JPEG_SCAN_MARKER)
    while marker := JPEG_MARKER.search(data, at):
        kind, at = marker[1][0], marker.end()
        if kind == EOI and scans:  # before that it ends nothing for Pillow
            return
        segments += 1
        scans += kind == SOS
        exifs += kind == APP1 and data.startswith(JPEG_EXIF_MARKER, at + 2)
        if scans > MAX_JPEG_SCANS:
            raise PictureError("a JPEG of too many scans")
        if exifs > MAX_JPEG_EXIFS:
            raise PictureError("a JPEG of too many EXIF segments")
        if segments > MAX_READS:
            raise PictureError("of too many parts")
        if kind not in BARE_JPEG_MARKERS:
            at += max(2, int.from_bytes(data[at : at + 2], "big"))


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height from an extended WebP header (the kind that can be animated), else (0, 0)."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = struct.unpack("<I", data[24:27] + b"\0")[0], struct.unpack("<I", data[27:30] + b"\0")[0]
        return width + 1, height + 1
    return 0, 0


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a PNG file of uint8 (3, H, W), whose pixels `picture_pixels` gives back unchanged."""
    file = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(file, "PNG")
    return file.getvalue()
