"""The body of a request -> the images in it, as files or ready: reading within limits, and the forms it can have."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Callable, Iterable
from email.message import Message

from pydantic_core import from_json
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
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
from app.http.npy import NPY_TYPE, read_npy
from app.http.parameters import BodyDeadline
from app.imaging import Entry

IMAGE_TYPES = frozenset({"image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "application/octet-stream"})
JSON_FORM = 'The JSON body must be {"images": ["<base64>", ...]} with at least one image.'
FIELD = "file"
USUAL_FILE = b'form-data; name="file"; filename="'
# Larger bodies are taken apart in a thread: a hostile one can take seconds.
SMALL_BODY_BYTES = 64 << 10
MAX_OTHER_FIELDS = 16
MAX_PART_HEADER_BYTES = 8192
# The email package takes the square of it: seconds for a header of 60 kB.
MAX_PARAMETERS = 32
MAX_LENGTH_DIGITS = 20


async def read_body(
    receive: Receive,
    content_length: str | None,
    take: Callable[[int], None],
    *,
    max_bytes: int,
    deadline: BodyDeadline,
) -> bytes:
    """Read a body of at most `max_bytes`, taking each chunk's bytes from the budget.

    Raises the deadline's error, BodyTooLarge (before reading, if the length is announced), QueueFull and ClientGone.
    """
    if content_length is not None and content_length.isdigit():
        digits = content_length.lstrip("0")  # of which there may be more than Python would read
        if len(digits) > MAX_LENGTH_DIGITS or int(digits or "0") > max_bytes:
            raise BodyTooLarge(max_bytes)
    chunks: list[bytes] = []
    total = 0
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
                take(len(chunk))
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
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind in IMAGE_TYPES:
        if not body:
            raise MalformedRequest("The body is empty: send an image file.")
        return [body]
    if kind == "multipart/form-data":
        boundary = _parameter("content-type", content_type or "", "boundary")
        return list(_split_multipart(boundary, body, max_images))
    if kind == "application/json":
        return _split_json(body, max_images)
    if kind == NPY_TYPE:
        return list(read_npy(body, max_images, size))
    raise UnsupportedMediaType


def refuse_codings(codings: Iterable[str]) -> None:
    """Raise UnsupportedMediaType if one of the Content-Encoding headers names a coding."""
    if any(coding.lower() != "identity" for coding in codings):
        raise UnsupportedMediaType


def _parameter(header: str, value: str, name: str) -> str:
    """Return a parameter of a header, such as a boundary, or "" if it has none. Raises MalformedRequest."""
    if value.count(";") > MAX_PARAMETERS:
        raise MalformedRequest(f"The {header} header has too many parameters.")
    message = Message()
    try:
        message[header] = value
        found = message.get_param(name, header=header)
    except Exception as error:  # the email package raises many kinds on hostile parameters
        raise MalformedRequest(f"The {header} header cannot be read.") from error
    return found if isinstance(found, str) else ""


def _split_json(body: bytes, max_images: int) -> list[Entry]:
    """Read {"images": ["<base64>", ...]}; a data: URL's prefix is allowed."""
    # What a right body never has is refused before objects are made of it: nesting, or more items than base64 strings.
    if body.count(b"[") > 1 or body.count(b"{") > 1:
        raise MalformedRequest(JSON_FORM)
    if body.count(b",") > 2 * max_images + 16:
        raise TooManyImages(max_images)
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


def _decode_base64(text: str) -> bytes | ServiceError:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return BadBase64()


class _Parts:
    """Collects the contents of the parts named `file` while python-multipart walks through a body."""

    def __init__(self, max_images: int) -> None:
        self.max_images = max_images
        self.files: list[bytes] = []
        self.others = 0
        self.complete = False
        self._name = self._value = b""
        self._headers_bytes = 0
        self._wanted = self._disposed = False
        self._chunks: list[bytes] = []

    def callbacks(self) -> dict[str, object]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def _begin(self) -> None:
        self._wanted = self._disposed = False
        self._headers_bytes = 0
        self._chunks = []
        self._name = self._value = b""

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name += self._bounded(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += self._bounded(data[start:end])

    def _bounded(self, piece: bytes) -> bytes:
        self._headers_bytes += len(piece)
        if self._headers_bytes > MAX_PART_HEADER_BYTES:
            raise MalformedRequest("A part of the multipart body has too large a header.")
        return piece

    def _header_end(self) -> None:
        if self._name.lower() == b"content-disposition":
            if self._disposed:
                raise MalformedRequest("A part of the multipart body has two Content-Disposition lines.")
            self._disposed = True
            # What clients write of a file is told at once: the email package takes as long as all the rest.
            usual = self._value.startswith(USUAL_FILE)
            value = self._value.decode("latin-1")
            self._wanted = usual or _parameter("content-disposition", value, "name") == FIELD
        self._name = self._value = b""

    def _headers_finished(self) -> None:
        if self._wanted and len(self.files) >= self.max_images:
            raise TooManyImages(self.max_images)
        self.others += not self._wanted
        if self.others > MAX_OTHER_FIELDS:
            raise MalformedRequest(f"The multipart body has too many fields that are not named '{FIELD}'.")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._wanted:
            self._chunks.append(data[start:end])

    def _end(self) -> None:
        if self._wanted:
            self.files.append(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks))

    def _finish(self) -> None:
        self.complete = True


def _without_preamble(body: bytes, delimiter: bytes) -> bytes:
    """Return a body from its first delimiter on: what stands before it means nothing (RFC 2046, 5.1.1)."""
    if body.startswith(delimiter):
        return body
    before, line, behind = body.partition(b"\r\n" + delimiter)
    return line[2:] + behind if line else before


def _split_multipart(boundary: str, body: bytes, max_images: int) -> list[bytes]:
    if not boundary:
        raise MalformedRequest("The multipart body's Content-Type names no boundary.")
    parts = _Parts(max_images)
    try:
        name = boundary.encode("latin-1")
        parser = MultipartParser(name, parts.callbacks())  # type: ignore[arg-type]
        parser.write(_without_preamble(body, b"--" + name))
        parser.finalize()
    except (FormParserError, UnicodeError, ValueError) as error:
        raise MalformedRequest("The body is not valid multipart/form-data.") from error
    if not parts.complete:
        raise MalformedRequest("The multipart body is cut off.")
    if not parts.files:
        raise MalformedRequest(f"The multipart body holds no field named '{FIELD}'.")
    return parts.files
