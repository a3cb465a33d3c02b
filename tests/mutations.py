"""Damaged pictures and bodies, each made from a seed and a number alone, so that a failing one can be made again.

python -m tests.mutations picture SEED NUMBER > file      (or: body SEED NUMBER)
"""

import base64
import json
import random
import re
import struct
import sys
import zlib
from functools import cache

import numpy as np
from PIL import Image

from benchmarks.load import multipart
from tests.conftest import encode

BOUNDARY = "fuzz-boundary"
SIZES = (0, 1, 2, 31, 33, 255, 256, 4095, 4096, 4097, 16_383, 32_767, 65_535, 65_536, 2**31 - 1, 2**32 - 1)
WEBP_SIZES = {b"VP8 ": 26, b"VP8L": 21, b"VP8X": 24}  # where in the file the canvas or frame size stands

# What must never be in an answer: a stack, an address, a path.
INTERNAL_TEXT = re.compile(rb"Traceback|0x[0-9a-f]+|(?:/[\w.-]+){2,}|\w+\.py\b|\w+Error\b")


def internal_text(answer):
    """Return what an answer tells of the service's inside, or None."""
    found = INTERNAL_TEXT.search(re.sub(rb"\b(?:image|multipart|application)/[\w.+-]+", b"", answer))
    return found and found[0].decode()


@cache
def pictures():
    """Small intact pictures, a few (content type, file) of each format."""
    pixels = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    noise = Image.fromarray(pixels)
    plain = Image.linear_gradient("L").resize((40, 24))
    alpha = noise.copy()
    alpha.putalpha(plain)
    exif = Image.Exif()
    exif[0x0112] = 6
    animation = {"save_all": True, "append_images": [noise.rotate(90), noise.rotate(180)]}
    wanted = (
        ("png", noise, {}),
        ("png", plain.convert("I;16"), {}),
        ("png", noise.quantize(16), {"transparency": 3, "bits": 4}),
        ("png", alpha, {"exif": exif}),
        ("png", noise, animation),
        ("jpeg", noise, {"exif": exif}),
        ("jpeg", plain, {"progressive": True}),
        ("jpeg", noise.convert("CMYK"), {"subsampling": 0}),
        ("gif", noise, {}),
        ("gif", noise, animation | {"comment": "fuzz"}),
        ("webp", noise, {"exif": exif}),
        ("webp", alpha, {"lossless": True}),
        ("webp", plain.convert("RGB"), {}),
        ("webp", noise, animation),
        ("bmp", noise, {}),
        ("bmp", noise.quantize(16), {}),
    )
    return tuple((f"image/{name}", encode(image, name.upper(), **options)) for name, image, options in wanted)


def mutated_picture(seed, number):
    """Return (name of what was done, content type, damaged file)."""
    rng = random.Random(f"picture {seed} {number}")
    kind, data = rng.choice(pictures())
    mutate = rng.choice(PICTURE_MUTATORS)
    return mutate.__name__, kind, bytes(mutate(bytearray(data), rng))


def flip_bits(data, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def flip_bits_under_right_checksums(data, rng):
    """PNG readers stop at the first wrong checksum; a right one lets the damage go deeper."""
    return right_checksums(flip_bits(data, rng))


def truncate(data, rng):
    return data[: rng.randrange(1, len(data))]


def splice_headers(data, rng):
    """The beginning of one file before the rest of another."""
    _, other = rng.choice(pictures())
    cut = rng.randrange(4, min(200, len(data)))
    return data[:cut] + other[rng.choice((cut, rng.randrange(len(other)))) :]


def repeat_or_drop(data, rng):
    start, end = sorted(rng.randrange(len(data)) for _ in range(2))
    return data[:start] + data[start:end] * rng.choice((0, 2, 30)) + data[end:]


def wrong_size(data, rng):
    """Another width or height where the format's header has them."""
    width, height = rng.choice(SIZES), rng.choice((*SIZES, 24))
    if data.startswith(b"\x89PNG"):
        struct.pack_into(">II", data, 16, width, height)
        return right_checksums(data)
    if data.startswith(b"\xff\xd8"):
        frame = re.search(rb"\xff[\xc0-\xc2]", data).start()
        struct.pack_into(">HH", data, frame + 5, height & 0xFFFF, width & 0xFFFF)
    elif data.startswith(b"GIF"):
        place = rng.choice((6, data.index(b",") + 5))
        struct.pack_into("<HH", data, place, width & 0xFFFF, height & 0xFFFF)
    elif data.startswith(b"RIFF"):
        struct.pack_into(
            "<I", data, WEBP_SIZES[bytes(data[12:16])], rng.choice((width, width << 14 | height)) & 2**32 - 1
        )
    else:
        struct.pack_into("<II", data, 18, width, height)
    return data


def wrong_number(data, rng):
    """A 16- or 32-bit number replaced by one that is often not thought of: lengths, offsets, counts."""
    code = rng.choice(("<H", ">H", "<I", ">I"))
    limit = 2 ** (8 * struct.calcsize(code)) - 1
    place = rng.randrange(min(len(data), 120) - 4)
    struct.pack_into(code, data, place, min(rng.choice(SIZES), limit))
    return right_checksums(data)


PICTURE_MUTATORS = (
    flip_bits,
    flip_bits_under_right_checksums,
    truncate,
    splice_headers,
    repeat_or_drop,
    wrong_size,
    wrong_number,
)


def right_checksums(data):
    """Give each chunk of a PNG its checksum again; other files stay as they are."""
    place = 8 if data.startswith(b"\x89PNG") else len(data)
    while place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = zlib.crc32(data[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    return data


def mutated_body(seed, number):
    """Return (name of what was done, content type, damaged multipart or JSON body)."""
    rng = random.Random(f"body {seed} {number}")
    files = [file for _, file in rng.choices(pictures(), k=rng.choice((1, 1, 2, 5)))]
    if rng.random() < 0.5:
        kind, data = f"multipart/form-data; boundary={BOUNDARY}", multipart(files, BOUNDARY)
    else:
        kind, data = (
            "application/json",
            json.dumps({"images": [base64.b64encode(file).decode() for file in files]}).encode(),
        )
    mutate = rng.choice(BODY_MUTATORS)
    kind, data = mutate(kind, bytearray(data), rng)
    return mutate.__name__, kind, bytes(data)


def damage_bytes(kind, data, rng):
    mutate = rng.choice((flip_bits, truncate, repeat_or_drop))
    return kind, mutate(data, rng)


def insert_tokens(kind, data, rng):
    """Pieces of the body's own grammar where they do not belong."""
    for _ in range(rng.choice((1, 2, 20))):
        place = rng.randrange(len(data))
        data[place:place] = rng.choice(TOKENS)
    return kind, data


def damage_structure(kind, data, rng):
    """Bytes of the grammar alone, between the images, replaced or dropped."""
    places = [found.start() for found in re.finditer(rb'[-\[\]{}",:;=\r\n]', data)]
    for place in sorted(rng.sample(places, min(len(places), rng.choice((1, 2, 8)))), reverse=True):
        data[place : place + 1] = rng.choice((b"", *TOKENS))
    return kind, data


def other_content_type(_kind, data, rng):
    return rng.choice(CONTENT_TYPES), data


def other_json(_kind, _data, rng):
    """JSON of random shape, its keys and values near what is expected."""
    return "application/json", json.dumps(random_json(rng, depth=4)).encode()


def random_json(rng, depth):
    kinds = ("leaf", "list", "object") if depth else ("leaf",)
    kind = rng.choice(kinds)
    if kind == "leaf":
        return rng.choice((None, True, 0, -1, 1e300, 10**40, "", "%%%", "A" * 5000, "data:,", "aGk=", "\ud800", "\0"))
    if kind == "list":
        return [random_json(rng, depth - 1) for _ in range(rng.choice((0, 1, 3, 300)) if depth == 1 else 2)]
    names = ("images", "images", "image", "", "\ud800")
    return {rng.choice(names): random_json(rng, depth - 1) for _ in range(rng.choice((1, 2)))}


BODY_MUTATORS = (damage_bytes, insert_tokens, damage_structure, other_content_type, other_json)
TOKENS = (
    *(
        b"[",
        b"]",
        b"{",
        b"}",
        b'"',
        b",",
        b":",
        b"\\",
        b"\\ud800",
        b"null",
        b"NaN",
        b"1e999",
        b"\0",
        b"\xff",
        b"=",
        b"===",
    ),
    *(b"\r\n", b"\n", b"--", f"--{BOUNDARY}".encode(), f"\r\n--{BOUNDARY}--\r\n".encode(), b"\r\n\r\n"),
    *(
        b'Content-Disposition: form-data; name="file"\r\n',
        b"; name*=utf-8''file",
        b"Content-Transfer-Encoding: base64\r\n",
    ),
)
CONTENT_TYPES = (
    *("", ";", "/", "image/png", "image/png;", "application/octet-stream", "application/json; charset=utf-16"),
    *("multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=--", "multipart/mixed"),
    *(
        "multipart/form-data; boundary*=utf-8''x",
        f"multipart/form-data; boundary={'b' * 300}",
        "text/plain",
        "image/svg+xml",
    ),
    *(f'multipart/form-data; boundary="{BOUNDARY}"', f"MULTIPART/FORM-DATA; x=1; boundary={BOUNDARY}; boundary=y"),
)


def damaged_start(rng, file, within=130):
    """Change one to three of a file's first bytes, drawn by `rng`, a NumPy generator."""
    body = bytearray(file)
    for at in rng.integers(0, within, rng.integers(1, 4)):
        body[at] = rng.integers(256)
    return body


if __name__ == "__main__":
    make = {"picture": mutated_picture, "body": mutated_body}[sys.argv[1]]
    name, kind, data = make(int(sys.argv[2]), int(sys.argv[3]))
    print(name, kind, file=sys.stderr)  # noqa: T201 - a command
    sys.stdout.buffer.write(data)
