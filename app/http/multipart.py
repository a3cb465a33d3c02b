"""The files of a multipart/form-data body (RFC 7578), by searching and matching: nothing here looks at single bytes.

So small bodies can be split on the event loop, hostile ones too: what a body costs is bounded by how many parts and
header lines it may have, whatever stands in them.
"""

from __future__ import annotations

import re

from app.errors import MalformedRequest, TooManyImages

FIELD = "file"
MAX_BOUNDARY_BYTES = 256  # RFC 2046 allows 70
MAX_OTHER_FIELDS = 16
MAX_PART_HEADER_BYTES = 8192
MAX_PART_HEADERS = 8

HEADER_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]++):[ \t]*+([^\r\n]*+)")
BLANKS = re.compile(rb"[ \t]*+")
NAME = rb"[ \t]*+name[ \t]*+(?=[=;]|\Z)"

# Whatever is in the file's name: browsers leave a backslash as it is, and others a quote.
USUAL_DISPOSITION = re.compile(rb'form-data; name="([^"\\]*+)"; filename="')


def _disposition(quoted: bytes) -> re.Pattern[bytes]:
    """Return what matches a Content-Disposition, with the name in one of two groups; `quoted` is within quotes.

    Parameters follow the first word, of which the first `name` counts. What has another form of name (RFC 2231) has
    none, as RFC 7578 says, nor what has one without a value.
    """
    parameter = rb';[^;="]*+(?:=(?:[ \t]*+"' + quoted + rb'"[ \t]*+|[^";]*+))?+'
    return re.compile(
        rb'[^;"]*+'
        rb"(?:(?!;" + NAME + rb")" + parameter + rb")*+"
        rb"(?:;" + NAME + rb'(?:=(?:[ \t]*+"(' + quoted + rb')"[ \t]*+|([^";]*+)))?+)?+'
        rb"(?:" + parameter + rb")*+",
        re.IGNORECASE,
    )


# Some clients write a backslash before a quote that is part of a name; browsers write %22, and a backslash as it is.
DISPOSITIONS = _disposition(rb'(?:[^"\\]|\\.)*+'), _disposition(rb'[^"]*+')


def split_multipart(boundary: str, body: bytes, max_images: int) -> list[bytes]:
    """Return the contents of the parts named `file`, at least one. Raises MalformedRequest and TooManyImages."""
    if not boundary:
        raise MalformedRequest("The multipart body's Content-Type names no boundary.")
    files: list[bytes] = []
    others = 0
    for begin, end in _parts(_delimiter(boundary), body, max_images + MAX_OTHER_FIELDS):
        header, content = _header(body, begin, end)
        if not _is_file(header):
            others += 1
            if others > MAX_OTHER_FIELDS:
                raise MalformedRequest(f"The multipart body has too many fields that are not named '{FIELD}'.")
        elif len(files) == max_images:
            raise TooManyImages(max_images)
        else:
            files.append(body[content:end])  # the only copy of what may be megabytes
    if not files:
        raise MalformedRequest(f"The multipart body holds no field named '{FIELD}'.")
    return files


def _delimiter(boundary: str) -> bytes:
    """Return what stands before each part but the first, which needs no new line. Raises MalformedRequest."""
    try:
        name = boundary.encode("latin-1")
    except UnicodeError as error:
        raise MalformedRequest("The multipart body's boundary cannot be read.") from error
    if len(name) > MAX_BOUNDARY_BYTES:
        raise MalformedRequest("The multipart body's boundary is too long.")
    return b"\r\n--" + name


def _parts(delimiter: bytes, body: bytes, most: int) -> list[tuple[int, int]]:
    """Return where parts begin, at the line's end behind their delimiter, and end; of more than `most`, one more.

    What stands before the first delimiter and behind the last one means nothing (RFC 2046, 5.1.1).
    Raises MalformedRequest.
    """
    parts: list[tuple[int, int]] = []
    first = delimiter[2:]
    begin = len(first) if body.startswith(first) else _behind(delimiter, body)
    while begin and len(parts) <= most:
        if body.startswith(b"--", begin):
            return parts
        at = body.find(delimiter, begin)
        end = at if at >= 0 else len(body)
        if not body.startswith(b"\r\n", begin, end):  # most often it does; else blanks may stand there
            begin = _behind_blanks(body, begin)
            if not body.startswith(b"\r\n", begin, end):
                raise MalformedRequest("The body is not valid multipart/form-data.")
        parts.append((begin, end))
        begin = at + len(delimiter) if at >= 0 else 0
    if len(parts) <= most:
        raise MalformedRequest("The multipart body is cut off.")
    return parts


def _behind(delimiter: bytes, body: bytes) -> int:
    """Return where the first delimiter ends, or 0 if there is none."""
    at = body.find(delimiter)
    return at + len(delimiter) if at >= 0 else 0


def _behind_blanks(body: bytes, at: int) -> int:
    matched = BLANKS.match(body, at)
    return matched.end() if matched else at


def _header(body: bytes, begin: int, end: int) -> tuple[bytes, int]:
    """Return a part's header, and where its content begins. Raises MalformedRequest."""
    most = min(end, begin + MAX_PART_HEADER_BYTES)
    empty_line = body.find(b"\r\n\r\n", begin, most)
    if empty_line >= 0:
        return body[begin + 2 : empty_line], empty_line + 4
    if most == end and body.endswith(b"\r\n", begin, end):  # only headers
        return body[begin + 2 : end - 2], end
    raise MalformedRequest("A part of the multipart body has too large a header, or one without an end.")


def _is_file(header: bytes) -> bool:
    """Whether a part's header names it `file`. Raises MalformedRequest."""
    header = header.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t")  # folded lines
    lines = header.split(b"\r\n", MAX_PART_HEADERS) if header else []
    if len(lines) > MAX_PART_HEADERS:
        raise MalformedRequest("A part of the multipart body has too many header lines.")
    disposition = None
    for line in lines:
        matched = HEADER_LINE.fullmatch(line)
        if matched is None:
            raise MalformedRequest("A part of the multipart body has a header that cannot be read.")
        if matched[1].lower() == b"content-disposition":
            if disposition is not None:
                raise MalformedRequest("A part of the multipart body has two Content-Disposition lines.")
            disposition = matched[2]
    return disposition is not None and _names_file(disposition)


def _names_file(disposition: bytes) -> bool:
    """Whether a Content-Disposition has the name `file`. Raises MalformedRequest."""
    usual = USUAL_DISPOSITION.match(disposition)
    if usual is not None:
        return usual[1] == FIELD.encode()
    matched = next(filter(None, (form.fullmatch(disposition) for form in DISPOSITIONS)), None)
    if matched is None:
        raise MalformedRequest("A part's Content-Disposition header cannot be read.")
    name = matched[1] if matched[1] is not None else matched[2]
    return name is not None and name.strip(b" \t") == FIELD.encode()
