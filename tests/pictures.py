"""Pictures of three kinds that are easy to tell apart, in many sizes and formats."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.imaging import decode
from tests.conftest import encode

KINDS = ("disc", "grass", "stripes")
FORMATS = (("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("gif", "GIF"))
LIMIT = 4096 * 4096  # the service's own, in pixels


def draw_picture(kind: str, number: int) -> Image.Image:
    """A red disc on blue, noise in green, or black and white stripes; size, shade and place vary with the number."""
    rng = np.random.default_rng([KINDS.index(kind), number])
    width, height = (int(side) for side in rng.integers(24, 120, 2))
    shade = int(rng.integers(140, 256))
    pixels = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    if kind == "disc":
        pixels[...] = (20, 40, shade)
        down, right = rng.uniform(-4, 4, 2)
        radius = min(width, height) * rng.uniform(0.25, 0.45)
        pixels[np.hypot(y - height / 2 - down, x - width / 2 - right) < radius] = (shade, 20, 20)
    elif kind == "grass":
        pixels[..., 1] = rng.integers(shade // 3, shade, (height, width))
    else:
        step = max(4, min(width, height) // 5)
        pixels[(x + rng.integers(step)) // step % 2 == 0] = shade
    return Image.fromarray(pixels)


def write_folder(root: Path, count: int, kinds: Sequence[str] = KINDS, first: int = 0) -> Path:
    """Write `count` pictures of each kind below `root`, from number `first` on, in all formats by turns; return it."""
    for kind in kinds:
        (root / kind).mkdir(parents=True)
        for number in range(first, first + count):
            suffix, image_format = FORMATS[number % len(FORMATS)]
            (root / kind / f"{number:03}.{suffix}").write_bytes(encode(draw_picture(kind, number), image_format))
    return root


def read(data: bytes, size: int = 32) -> NDArray[np.uint8]:
    """Decode a picture as the service does: uint8 (3, size, size)."""
    return decode(data, size, LIMIT)
