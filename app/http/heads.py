"""A request's header, as those who answer on its connection see it, and how it is known again.

Clients that keep a connection open send the same header again and again, but for the length of the body. Parsing it is
a third of what a small request costs, and refusing one in an overload is little else. So a connection keeps the last
header of a small request as bytes; what has the same bytes around its length was parsed once and means the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from app.http.parameters import NO_PARAMETERS, Parameters
from app.http.problems import Headers
from app.http.request_ids import given_id_in

LINE_OF_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,8})\r\n", re.IGNORECASE)


class Head:
    """The header of a POST: `fields` by lower-case name, of equal names the first one; `parameters` are not judged."""

    __slots__ = ("content_type", "fields", "given_id", "headers", "key", "parameters")

    def __init__(self, headers: Headers, query: bytes) -> None:
        self.headers = headers
        self.fields = dict(reversed(headers))
        self.given_id = given_id_in(self.fields)
        self.key = self.fields.get(b"authorization", b"").decode("latin-1")
        self.content_type = self.fields.get(b"content-type", b"").decode("latin-1")
        timeout = self.fields.get(b"x-timeout-ms")
        self.parameters = Parameters.read(query, timeout) if query or timeout is not None else NO_PARAMETERS


@dataclass(frozen=True, slots=True)
class KnownHead:
    """A header by its bytes: those before the digits of the body's length, and those behind them."""

    before: bytes
    after: bytes
    head: Head

    @classmethod
    def of(cls, request: bytes, head: Head) -> KnownHead | None:
        """Return the header of `request`, to be known again, or None if it is not of the usual form.

        `request` is one whole request as it came, `head` what the parser has read of it. That all bytes behind the
        first blank line are as many as content-length says is checked, so that the header does end there.
        """
        end = request.find(b"\r\n\r\n") + 4
        line = LINE_OF_LENGTH.search(request, 0, end - 2)
        length = head.fields.get(b"content-length", b"")
        plain = request.startswith(b"POST ") and request[: request.find(b"\r\n")].endswith(b" HTTP/1.1")
        if line is None or not plain or line[1] != length or int(length) != len(request) - end:
            return None
        return cls(request[: line.start(1)], request[line.end(1) : end], head)

    def match(self, request: bytes) -> tuple[int, bytes] | None:
        """Match the bytes that have come of a request against this header with any content-length.

        Returns the length that is announced and what has come of the body; None if the header differs or is not whole.
        """
        if not request.startswith(self.before):
            return None
        begin = len(self.before)
        end = request.find(b"\r", begin, begin + 9)
        length = request[begin:end]
        if end < 0 or not length.isdigit() or not request.startswith(self.after, end):
            return None
        return int(length), request[end + len(self.after) :]
