import io
import random
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from model.pictures.codec import open_picture, picture_pixels
from model.pictures.files import PictureError
from model.pictures.plain_png import read_plain_png
from tests.bombs import chunk

SIZE = 32
PIXELS = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
# Of every row filter there is one row at least in a picture of both gradients and noise.
GRADIENT = np.stack([np.add.outer(np.arange(SIZE) * 3, np.arange(SIZE) * 4)] * 3, axis=2).astype(np.uint8)
GRADIENT[::5] = PIXELS[::5]


def png(pixels=PIXELS, **options):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", **options)
    return file.getvalue()


def the_long_way(data):
    try:
        return picture_pixels(open_picture(data, 1 << 20), SIZE)
    except PictureError:
        return None


@pytest.mark.parametrize("pixels", [PIXELS, GRADIENT, np.zeros_like(PIXELS)], ids=["noise", "gradient", "black"])
def test_a_plain_png_has_the_pixels_that_were_written(pixels):
    read = read_plain_png(png(pixels), SIZE)
    np.testing.assert_array_equal(read, pixels.transpose(2, 0, 1))
    assert read.flags.c_contiguous


def text():
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "not plain")
    return info


def interlaced():
    data = bytearray(png())
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return bytes(data)


def in_two_pieces():
    whole = png()
    data = whole[41:-16]
    return whole[:33] + chunk(b"IDAT", data[:100]) + chunk(b"IDAT", data[100:]) + whole[-12:]


OTHERS = {
    "another size": png(PIXELS[:31]),
    "grey": png(PIXELS[:, :, 0]),
    "alpha": png(np.dstack([PIXELS, PIXELS[:, :, :1]])),
    "text": png(pnginfo=text()),
    "transparent colour": png(transparency=(1, 2, 3)),
    "interlaced": interlaced(),
    "in two pieces": in_two_pieces(),
    "something behind the end": png() + b"\0",
    "another end": png()[:-12] + chunk(b"teSt"),
    "cut short": png()[:-20],
    "less data than it says": png()[:33] + struct.pack(">I", len(png()) - 56) + png()[37:],
    "a JPEG": b"\xff\xd8\xff",
    "nothing": b"",
}


@pytest.mark.parametrize("data", OTHERS.values(), ids=OTHERS)
def test_anything_else_goes_the_long_way(data):
    assert read_plain_png(data, SIZE) is None


def damaged(seed, number):
    """Return a file with a few bits flipped in its bytes, or in its rows before they were compressed, or cut short."""
    original = png(GRADIENT if number % 2 else PIXELS)
    rows = number % 4 < 2
    data = bytearray(zlib.decompress(original[41:-16]) if rows else original)
    for _ in range(seed.randint(1, 3)):
        data[seed.randrange(len(data))] ^= 1 << seed.randrange(8)
    if rows:
        data[seed.randrange(SIZE) * (3 * SIZE + 1)] = seed.randrange(6)  # a row's filter: there are five
        if number % 5 == 0:
            del data[seed.randrange(len(data)) :]
        return original[:33] + chunk(b"IDAT", zlib.compress(data)) + original[-12:]
    if number % 5 == 0:
        return original[:33] + chunk(b"IDAT", data[41 : seed.randrange(42, len(data) - 16)]) + original[-12:]
    return bytes(data)


def test_damaged_files_are_what_they_are_on_the_long_way():
    seed = random.Random(0)
    plain = 0
    for number in range(2000):
        data = damaged(seed, number)
        read = read_plain_png(data, SIZE)
        if read is not None:
            plain += 1
            np.testing.assert_array_equal(read, the_long_way(data))
    assert 100 < plain < 1900


@pytest.mark.parametrize("rows", [0, 1, SIZE - 1, SIZE, SIZE + 1])
@pytest.mark.parametrize("more", [-1, 0, 1])
def test_data_that_ends_early_is_taken_as_on_the_long_way(rows, more):
    whole = png(GRADIENT)
    data = (zlib.decompress(whole[41:-16]) + bytes(1000))[: max(0, rows * (3 * SIZE + 1) + more)]
    ended = whole[:33] + chunk(b"IDAT", zlib.compress(data)) + whole[-12:]
    read, expected = read_plain_png(ended, SIZE), the_long_way(ended)
    assert (
        (read is None) == (expected is None) == (rows == 0 or (rows < SIZE and more != 0) or (rows, more) == (SIZE, -1))
    )
    if read is not None:
        np.testing.assert_array_equal(read, expected)
        np.testing.assert_array_equal(read[:, :rows], GRADIENT.transpose(2, 0, 1)[:, :rows])
        assert not read[:, rows:].any()
