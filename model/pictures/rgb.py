"""Any picture that Pillow has decoded -> RGB, transparency laid over white, in little memory besides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

# Laid over white, a pixel takes 16 bytes for a moment, besides the picture's own. So many are done at a time: two
# megabytes, which stay in a core's caches and below what gets pages of its own (app/memory.py).
BAND_PIXELS = 1 << 17

TRANSPARENT_MODES = frozenset({"RGBA", "LA", "PA", "La", "RGBa"})


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode that the accepted formats produce to RGB, transparency laid over white.

    `image` is closed if what is returned is another one. Both together take at most 8 bytes a pixel.
    """
    transparent = "transparency" in image.info or image.mode in TRANSPARENT_MODES
    if image.mode == "RGB" and not transparent:
        return image
    if not transparent and not image.mode.startswith("I"):
        converted = image.convert("RGB")
    elif image.width * image.height <= BAND_PIXELS:
        converted = _flatten(image)
    else:
        converted = Image.new("RGB", image.size)
        for box in _bands(*image.size):
            converted.paste(_flatten(image.crop(box)), box)
    image.close()
    return converted


def _bands(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield the boxes (left, top, right, bottom) of at most BAND_PIXELS that cover a picture: rows, or parts of one."""
    across = min(width, BAND_PIXELS)
    down = BAND_PIXELS // across
    for top in range(0, height, down):
        for left in range(0, width, across):
            yield left, top, min(left + across, width), min(top + down, height)


def _flatten(image: Image.Image) -> Image.Image:
    """Convert to RGB what has 16 bits of grey, or transparency: that is laid over white."""
    if image.mode.startswith("I"):  # 16 bits of grey
        grey = np.asarray(image)
        if grey.dtype != np.uint16:
            grey = grey.clip(0, 65535)
        shown = (grey >> 8).astype(np.uint8)
        if "transparency" in image.info:
            shown[grey == image.info["transparency"]] = 255
        return Image.fromarray(shown).convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
