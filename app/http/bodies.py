"""The body of a request -> the images in it, as files or ready: reading within limits, and the forms it can have."""

from __future__ import annotations

import asyncio
import base64
import binascii
import re
from collections.abc import Callable, Iterable
from email.message import Message

from pydantic_core import from_json
from starlette.types import Receive

from app.errors import (
    BadBase64,
    BodyTooLarge,
    ClientGone,
    MalformedRequest,
    ServiceError,
    TooManyImages,
    UnsupportedMediaType,
)
from app.http.multipart import split_multipart
from app.http.npy import NPY_TYPE, read_npy
from app.http.parameters import BodyDeadline
from app.imaging import Entry

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream"})
# What takes long to be taken apart where it is large.
SLOW_FORMS = frozenset({"multipart/form-data", "application/json"})
KINDS = IMAGE_TYPES | SLOW_FORMS | {NPY_TYPE}
JSON_FORM = 'The JSON body must be {"images": ["<base64>", ...]} with at least one image.'
IMAGES_LIST = re.compile(rb'"images"\s*+:\s*+\[')  # within a string a backslash stands before the second quote
# Larger bodies take from a budget of bytes, and those of SLOW_FORMS are split in a thread. Of smaller ones there is one
# a connection.
SMALL_BODY_BYTES = 64 << 10
# The email package takes long for many parameters or escaped ones: seconds for 60 kB of them.
MAX_CONTENT_TYPE = 1024
MAX_PARAMETERS = 32
MAX_LENGTH_DIGITS = 20


def announced_bytes(content_length: str | None) -> int:
    """Return how many bytes a Content-Length announces, or very many if those are more; 0 if it announces none."""
    if content_length is None or not content_length.isdigit():
        return 0
    return int(content_length.lstrip("0")[: MAX_LENGTH_DIGITS + 1] or "0")  # of more digits than Python would read


def kind_of(content_type: str | None) -> str:
    """Return the media type that a Content-Type names, without its parameters."""
    return (content_type or "").partition(";")[0].strip().lower()


def refuse_unread(kind: str, codings: Iterable[str], announced: int, max_bytes: int) -> None:
    """Refuse what no body can make acceptable, by its media type, codings and announced length.

    Raises BodyTooLarge and UnsupportedMediaType.
    """
    if announced > max_bytes:
        raise BodyTooLarge(max_bytes)
    if kind not in KINDS:
        raise UnsupportedMediaType
    refuse_codings(codings)


async def read_body(
    receive: Receive,
    take: Callable[[int], None],
    *,
    max_bytes: int,
    deadline: BodyDeadline,
) -> bytes:
    """Read a body of at most `max_bytes`, taking its bytes from the budget once it is no small one.

    So a few slow clients with large bodies, who can hold all of the budget, keep out nobody with a small one.

    Raises the deadline's error, BodyTooLarge, QueueFull and ClientGone.
    """
    chunks: list[bytes] = []
    total = taken = 0
    try:
        async with asyncio.timeout(deadline.timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                total += len(chunk)
                if total > max_bytes:
                    raise BodyTooLarge(max_bytes)
                if total > SMALL_BODY_BYTES:
                    take(total - taken)
                    taken = total
                chunks.append(chunk)
                if not message.get("more_body", False):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
    except TimeoutError as error:
        raise deadline.error from error


def split_images(content_type: str | None, body: bytes, max_images: int, size: int) -> list[Entry]:
    """Return the images of a body, at least one: files, or arrays that are ready, uint8 (3, size, size).

    An entry that is no base64 is an error in its place.
    Raises UnsupportedMediaType, MalformedRequest, UnusableArray and TooManyImages.
    """
    kind = kind_of(content_type)
    if kind in IMAGE_TYPES:
        if not body:
            raise MalformedRequest("The body is empty: send an image file.")
        return [body]
    if kind == "multipart/form-data":
        return list(split_multipart(_boundary(content_type or ""), body, max_images))
    if kind == "application/json":
        return _split_json(body, max_images)
    if kind == NPY_TYPE:
        return list(read_npy(body, max_images, size))
    raise UnsupportedMediaType


def refuse_codings(codings: Iterable[str]) -> None:
    """Raise UnsupportedMediaType if one of the Content-Encoding headers names a coding."""
    if any(coding.lower() != "identity" for coding in codings):
        raise UnsupportedMediaType


def _boundary(content_type: str) -> str:
    """Return the boundary that a Content-Type names, or "" if it names none. Raises MalformedRequest."""
    if len(content_type) > MAX_CONTENT_TYPE or content_type.count(";") > MAX_PARAMETERS:
        raise MalformedRequest("The Content-Type header is too long or has too many parameters.")
    message = Message()
    try:
        message["content-type"] = content_type
        found = message.get_param("boundary")
    except Exception as error:  # the email package raises many kinds on hostile parameters
        raise MalformedRequest("The Content-Type header cannot be read.") from error
    return found if isinstance(found, str) else ""


def _split_json(body: bytes, max_images: int) -> list[Entry]:
    """Read {"images": ["<base64>", ...]}; a data: URL's prefix is allowed."""
    # What a right body never has is refused before objects are made of it: nesting, or more items than base64 strings.
    max_commas = max_images + 16
    outside = _outside_strings(body, max_commas)
    if outside.count(b"[") > 1 or outside.count(b"{") > 1:
        raise MalformedRequest(JSON_FORM)
    if outside.count(b",") > max_commas:
        raise _too_long(body, outside, max_images)
    try:
        parsed = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise MalformedRequest("The body is not valid JSON.") from error
    images = parsed.get("images") if isinstance(parsed, dict) else None
    if not isinstance(images, list) or not images or not all(isinstance(image, str) for image in images):
        raise MalformedRequest(JSON_FORM)
    if len(images) > max_images:
        raise TooManyImages(max_images)
    return [_decode_base64(image) for image in images]


def _too_long(body: bytes, outside: bytes, max_images: int) -> ServiceError:
    """Return what is wrong with a JSON text of too many commas: `images`, if it is a list, or what is beside it."""
    if IMAGES_LIST.search(body) is None or outside.partition(b"[")[2].partition(b"]")[0].count(b",") < max_images:
        return MalformedRequest(JSON_FORM)
    return TooManyImages(max_images)


def _outside_strings(body: bytes, max_commas: int) -> bytes:
    """Return what stands outside the strings of a JSON text, as far as it matters.

    Two strings have a comma, a colon or a bracket between them: without nesting, a text of `max_commas` commas has no
    more than twice as many strings and two. What stands behind more strings is left out: the parser fails before.
    """
    if b"\\" in body:
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    max_strings = 2 * max_commas + 3
    return b" ".join(body.split(b'"', 2 * max_strings)[: 2 * max_strings : 2])


def _decode_base64(text: str) -> bytes | ServiceError:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return BadBase64()
