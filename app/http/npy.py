"""A NumPy file (.npy) as the body -> images that are ready for the network: nothing is decoded, nothing unpickled.

The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html. NumPy's reader of headers
(`read_array_header_1_0`) is not used: it copies a header before it looks how long that is, lets Python parse whatever a
client has written there, which may log warnings, and makes any type that is described.
"""

from __future__ import annotations

import ast
import math
import re

import numpy as np
from numpy.typing import NDArray

from app.errors import MalformedRequest, TooManyImages, UnusableArray

NPY_TYPE = "application/x-npy"

MAGIC = b"\x93NUMPY"
LENGTH_BYTES = {b"\x01\x00": 2, b"\x02\x00": 4}
MAX_HEADER_BYTES = 1024
# The tokens that a header may have: Python's parser sees nothing else of a client's bytes.
WORDS = re.compile(r"""(?:[\s{}()\[\]:,]|True|False|\d++\b|'[^'\\]*+'|"[^"\\]*+")*+""", re.ASCII)
UINT8 = frozenset({"|u1", "<u1", ">u1", "=u1", "u1", "B", "|B", "uint8"})


def read_npy(body: bytes, max_images: int, size: int) -> NDArray[np.uint8]:
    """Return the images of a .npy file of format 1.0 or 2.0: a read-only view of `body`, uint8 (N, 3, size, size).

    The file holds uint8 (N, 3, size, size), N from 1 to `max_images`, or (3, size, size), in C order.
    Raises MalformedRequest, UnusableArray for another type, shape or order, and TooManyImages.
    """
    header, start = _header(body)
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(side) is int and side >= 0 for side in shape):
        raise MalformedRequest("The header of the .npy body cannot be read.")
    image = (3, size, size)
    count = shape[0] if len(shape) == 4 else 1
    is_uint8 = isinstance(header["descr"], str) and header["descr"] in UINT8
    if not is_uint8 or header["fortran_order"] is not False or shape not in {image, (count, *image)}:
        raise UnusableArray(size)
    if count == 0:
        raise MalformedRequest("The .npy body holds no image.")
    if count > max_images:
        raise TooManyImages(max_images)
    if len(body) - start != count * math.prod(image):
        raise MalformedRequest("The .npy body is shorter or longer than its header says.")
    return np.frombuffer(body, np.uint8, offset=start).reshape(count, *image)


def _header(body: bytes) -> tuple[dict[str, object], int]:
    """Return the header's three entries, and where the numbers begin."""
    version_end = len(MAGIC) + 2
    width = LENGTH_BYTES.get(body[len(MAGIC) : version_end])
    if not body.startswith(MAGIC) or width is None:
        raise MalformedRequest("The body is not a .npy file of format 1.0 or 2.0.")
    start = version_end + width
    end = start + int.from_bytes(body[version_end:start], "little")
    if end - start > MAX_HEADER_BYTES or end > len(body):
        raise MalformedRequest("The header of the .npy body is cut off or too long.")
    text = body[start:end].decode("latin-1").strip()
    try:
        header = ast.literal_eval(text) if WORDS.fullmatch(text) else None
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise MalformedRequest("The header of the .npy body cannot be read.") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise MalformedRequest("The header of the .npy body cannot be read.")
    return header, end
