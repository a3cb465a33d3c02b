"""Picture files -> pixels, by one definition for training on a folder of pictures and for the service.

Limits are checked on the header, before memory for pixels is spent. Whatever Pillow raises on damaged or hostile
bytes ends here: its messages can hold addresses, so there are plain words instead.
"""

from __future__ import annotations

import io
import struct

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from model.transforms import evaluation_transform

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

# Entropy-coded data never holds this marker, and progressive files have about ten; thousands are a bomb for the CPU.
JPEG_SCAN_MARKER = b"\xff\xda"
MAX_JPEG_SCANS = 100


class PictureError(ValueError):
    """A file is no picture that can be used; the message says why in a few plain words."""


class PictureTooLarge(PictureError):
    """The header announces more pixels than allowed."""

    def __init__(self, max_pixels: int) -> None:
        super().__init__(f"more than {max_pixels} pixels")


def open_picture(data: bytes, max_pixels: int) -> Image.Image:
    """Read the header of a picture file; no pixel is decoded yet. Raises PictureError, if too large PictureTooLarge.

    Pillow warns of pictures far beyond `max_pixels` besides: turn Image.DecompressionBombWarning into an error.
    """
    if not data:
        raise PictureError("empty")
    # Pillow's WebP reader allocates its canvas when it opens the file, so its header is looked at first.
    width, height = _webp_canvas(data)
    if width * height > max_pixels:
        raise PictureTooLarge(max_pixels)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PictureTooLarge(max_pixels) from error
    except UnidentifiedImageError as error:
        raise PictureError("not an intact JPEG, PNG, WebP, GIF or BMP picture") from error
    except Exception as error:  # Pillow raises many kinds on damaged files: OSError, SyntaxError, struct.error, ...
        raise PictureError("damaged") from error
    if width * height > max_pixels:
        raise PictureTooLarge(max_pixels)
    if image.format == "JPEG" and data.count(JPEG_SCAN_MARKER) > MAX_JPEG_SCANS:
        raise PictureError("a JPEG of too many scans")
    return image


def picture_pixels(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Decode an opened picture to RGB and bring it to uint8 (3, size, size) by the evaluation transform.

    Animations count by their first frame; EXIF orientation is obeyed; transparency is laid over white.
    Raises PictureError.
    """
    try:
        image.load()
        return evaluation_transform(_to_rgb(_upright(image)), size)
    except Exception as error:  # as above
        raise PictureError("damaged or cut short") from error


def _upright(image: Image.Image) -> Image.Image:
    """Turn the picture as its EXIF orientation says; damaged EXIF data says nothing."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # the picture itself is fine
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that the accepted formats produce to RGB, transparency laid over white."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image)
        if grey.dtype != np.uint16:
            grey = grey.clip(0, 65535)
        return Image.fromarray((grey >> 8).astype(np.uint8)).convert("RGB")
    if "transparency" in image.info or image.mode in {"RGBA", "LA", "PA", "La", "RGBa"}:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _webp_canvas(data: bytes) -> tuple[int, int]:
    """Return width and height from an extended WebP header (the kind that can be animated), else (0, 0)."""
    if data[:4] == b"RIFF" and data[8:16] == b"WEBPVP8X" and len(data) >= 30:
        width, height = struct.unpack("<I", data[24:27] + b"\0")[0], struct.unpack("<I", data[27:30] + b"\0")[0]
        return width + 1, height + 1
    return 0, 0
