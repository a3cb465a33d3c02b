"""Small files and requests that would take much memory or time: what each is, and the answer that it must get."""

import struct
import zlib
from functools import cache

from PIL import Image

from tests.conftest import encode

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
SIDE = 16_383  # the largest that WebP has; all others go further
DISPOSED_OF = b"!\xf9\4\x08\0\0\0\0"  # what says that of a GIF's next frame


def chunk(kind, body=b""):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, *before, bits=8, colours=2, rows=None, pixels=None):
    """A whole PNG, black unless `pixels` are given; `before` stands between header and pixels."""
    row = 1 + (width * bits * {0: 1, 2: 3, 6: 4}[colours] + 7) // 8
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0))
    data = bytes(row * (height if rows is None else rows)) if pixels is None else pixels
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", zlib.compress(data, 1)) + PNG_END


def png_without_pixels(width, height):
    """A PNG whose header says that it is so large, and which ends at once."""
    return png(width, height, pixels=bytes(100))


def jpeg(width=32, height=32, **options):
    """A small JPEG that says it has another size."""
    data = bytearray(encode(Image.new("RGB", (32, 32), "red"), "JPEG", **options))
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    struct.pack_into(">HH", data, frame + 5, height, width)
    return bytes(data)


def gif(width=1, height=1, before=b"", frames=1, side=1):
    """A GIF of frames of so many pixels a side, one by default, on a canvas of this size.

    `before` stands before the first.
    """
    frame = b",\0\0\0\0" + struct.pack("<HH", side, side) + b"\0\2\2D\1\0"
    return (
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff" + before + frame * frames + b";"
    )


def bmp(width, height, data=b"", run_lengths=False):
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, int(run_lengths), len(data), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(data), 0, 0, 1078) + header + bytes(1024) + data


def webp(width, height, lossless=False):
    """A small WebP whose simple header says it has another size."""
    data = bytearray(encode(Image.new("RGB", (32, 32)), "WEBP", lossless=lossless))
    if lossless:
        struct.pack_into("<I", data, 21, (width - 1) | (height - 1) << 14)
    else:
        struct.pack_into("<HH", data, 26, width, height)
    return bytes(data)


def animated_webp(frames, width=1, height=1):
    small = [Image.new("RGB", (1, 1), (shade, 0, 0)) for shade in (0, 100, 200)]
    data = encode(small[0], "WEBP", save_all=True, append_images=small[1:])
    first = data.index(b"ANMF")
    size = 8 + int.from_bytes(data[first + 4 : first + 8], "little")
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = data[8:24] + canvas + data[30:first] + data[first : first + size] * frames
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animated_png(frames):
    """The first frame is the picture itself; each other has a control and a data chunk."""
    pixels = zlib.compress(b"\0\0\0\0")
    parts = [chunk(b"acTL", struct.pack(">II", frames, 0))]
    for number in range(frames):
        control = struct.pack(">IIIIIHHBB", max(0, 2 * number - 1), 1, 1, 0, 0, 1, 10, 0, 0)
        data = chunk(b"fdAT", struct.pack(">I", 2 * number) + pixels) if number else chunk(b"IDAT", pixels)
        parts += [chunk(b"fcTL", control), data]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + PNG_END


def texts(count):
    return [chunk(b"zTXt", b"key%d\0\0" % number + zlib.compress(bytes(1 << 20))) for number in range(count)]


def profile():
    return chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20)))


def exif_chunk(fractions):
    """A chunk that turns the picture, and holds a tag of so many fractions besides."""
    turned = struct.pack("<HHII", 0x0112, 3, 1, 6)
    many = struct.pack("<HHII", 0xEEEE, 5, fractions, 8 + 2 + 2 * 12 + 4)
    return chunk(b"eXIf", b"II*\0\x08\0\0\0\2\0" + turned + many + bytes(4) + b"\1\0\0\0" * 2 * fractions)


@cache
def picture_bombs():
    """Name -> (file, its format, status, problem code or None)."""
    plain, scan = encode(Image.new("RGB", (64, 64), "red"), "JPEG", progressive=True), b"\xff\xda"
    scans = plain[:-2] + plain[plain.rindex(scan) : -2] * 1000 + plain[-2:]
    exif = b"\xff\xe1\xff\xffExif\0\0" + bytes(0xFFFF - 8)
    many, large, bad = 1 << 18, (422, "too-many-pixels"), (422, "undecodable-image")
    fine = (200, None)
    return {
        "png of 400 million pixels": (png(20_000, 20_000, bits=1, colours=0), "png", *large),
        "jpeg of 4 billion pixels": (jpeg(65_500, 65_500), "jpeg", *large),
        "gif of 4 billion pixels": (gif(65_535, 65_535), "gif", *large),
        "gif of 4 billion pixels to be disposed of": (gif(before=DISPOSED_OF, side=65_535), "gif", *large),
        "webp of 268 million pixels": (webp(SIDE, SIDE), "webp", *large),
        "lossless webp of 268 million pixels": (webp(SIDE, SIDE, lossless=True), "webp", *large),
        "animated webp of 268 million pixels": (animated_webp(3, 16_384, 16_384), "webp", *large),
        "bmp of 900 million pixels": (bmp(30_000, 30_000), "bmp", *large),
        "bmp of run lengths": (bmp(4096, 4096, b"\xff\1" * 66_000, run_lengths=True), "bmp", *bad),
        "bmp of run lengths, one pixel each": (bmp(1000, 1000, b"\1\1" * 1_000_000, run_lengths=True), "bmp", *bad),
        "png of 60 MB of text": (png(32, 32, *texts(60)), "png", *bad),
        "png of 60 MB of text at its end": (png(32, 32)[:-12] + b"".join(texts(60)) + PNG_END, "png", *bad),
        "png of a gigabyte too many pixels": (png(32, 32, rows=2_000_000), "png", *fine),
        "png of 260,000 chunks": (png(32, 32, chunk(b"teSt") * many), "png", *bad),
        "png of 260,000 pieces of pixels": (png(32, 32, chunk(b"IDAT") * many), "png", *bad),
        "jpeg of 260,000 fill bytes": (b"\xff\xd8" + b"\xff" * many + jpeg()[2:], "jpeg", *bad),
        "jpeg of 260,000 comments": (b"\xff\xd8" + b"\xff\xfe\0\2" * many + jpeg()[2:], "jpeg", *bad),
        "png of 3000 colour profiles": (png(32, 32, profile() * 3000), "png", *bad),
        "png of 8 MB of EXIF": (png(32, 32, exif_chunk(1_000_000)), "png", *fine),
        "png of 128 KB of EXIF": (png(32, 32, exif_chunk(16_000)), "png", *fine),
        "jpeg of 60 EXIF segments": (b"\xff\xd8" + exif * 60 + jpeg()[2:], "jpeg", *bad),
        "jpeg of 1000 scans": (scans, "jpeg", *bad),
        "gif of 260,000 extensions": (gif(before=b"!\1\0" * many), "gif", *bad),
        "gif of 5000 frames": (gif(frames=5000), "gif", *fine),
        "webp of 5000 frames": (animated_webp(5000), "webp", *fine),
        "png of 5000 frames": (animated_png(5000), "png", *fine),
        "png 65,535 wide": (png(65_535, 1), "png", *fine),
        "png 65,535 high": (png(1, 65_535), "png", *fine),
        "gif 65,535 wide": (gif(65_535, 1), "gif", *fine),
        "bmp 65,535 wide": (bmp(65_535, 1, bytes(65_536)), "bmp", *fine),
        "jpeg 65,500 wide": (encode(Image.new("RGB", (65_500, 1)), "JPEG"), "jpeg", *fine),
        "webp 16,383 wide": (encode(Image.new("RGB", (SIDE, 1)), "WEBP"), "webp", *fine),
        "png 65,535 x 300": (png(65_535, 300), "png", *large),
    }
