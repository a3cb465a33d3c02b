"""A request's header as the fast path sees it, and the cache of one, which spares the parser those that are like it.

Clients that keep a connection open send the same header again and again, but for the length of the body, a boundary
and, behind a proxy, what it adds to tell requests apart. Parsing it is a third of what a small request costs, and
refusing one in an overload is little else. So a connection caches the last header of a small request as bytes; what
has the same bytes around those values was parsed once and means the same but for them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from app.http.parameters import NO_PARAMETERS, Parameters
from app.http.problems import Headers
from app.http.request_ids import given_id_in

CONTENT_LENGTH, CONTENT_TYPE = b"content-length", b"content-type"
LENGTH = re.compile(rb"[0-9]{1,8}")

# What tells requests or clients apart and decides about nothing: two of these name a request here (request_ids.py), the
# others are not read at all.
TELLING_APART = (
    b"x-request-id traceparent tracestate baggage b3 x-b3-traceid x-b3-spanid x-b3-parentspanid x-correlation-id"
    b" x-amzn-trace-id x-cloud-trace-context cf-ray cf-connecting-ip x-forwarded-for x-real-ip forwarded"
    b" user-agent".split()
)
MAY_DIFFER = frozenset((CONTENT_LENGTH, CONTENT_TYPE, *TELLING_APART))
TEXT = re.compile(rb"[!-~](?:[ -~]*[!-~])?")  # as the parser gives it, without the space around it
MAX_VALUE_BYTES = 512

# Headers that come again to the last byte are looked up: so many, no longer ones, and only where nothing tells requests
# apart but what is here. Most clients send few pictures' lengths, and name no request.
SELDOM_DIFFER = frozenset((CONTENT_LENGTH, CONTENT_TYPE, b"user-agent"))
MAX_SAME = 16
MAX_SAME_BYTES = 512


class RequestHead:
    """What the header of a POST says, of equal names the first one; `parameters` are not validated."""

    __slots__ = ("codings", "content_type", "given_id", "key", "parameters")

    def __init__(self, headers: Headers, query: bytes) -> None:
        fields = dict(reversed(headers))
        self.given_id = given_id_in(fields)
        self.key = fields.get(b"authorization", b"").decode("latin-1")
        self.content_type = fields.get(b"content-type", b"").decode("latin-1")
        self.codings: list[str] = []
        if b"content-encoding" in fields:
            self.codings = [value.decode("latin-1") for name, value in headers if name == b"content-encoding"]
        timeout = fields.get(b"x-timeout-ms")
        self.parameters = Parameters.read(query, timeout) if query or timeout is not None else NO_PARAMETERS

    def but_for(self, values: dict[bytes, bytes]) -> RequestHead:
        """Return what the header of another request says, which has other `values` of those that may differ."""
        other = RequestHead.__new__(RequestHead)
        other.codings, other.key, other.parameters = self.codings, self.key, self.parameters
        other.content_type = values.get(CONTENT_TYPE, b"").decode("latin-1")
        other.given_id = given_id_in(values)
        return other


@dataclass(frozen=True, slots=True)
class CachedHeader:
    """A header by its bytes: `start`, and then by name each value that may differ and the bytes behind it."""

    start: bytes
    rest: tuple[tuple[bytes, bytes], ...]
    head: RequestHead
    _same: dict[bytes, tuple[RequestHead, int]] = field(default_factory=dict)  # what whole headers say, by their bytes

    @classmethod
    def of(cls, request: bytes, head: RequestHead) -> CachedHeader | None:
        """Return the header of `request` for the cache, or None if it is not of the usual form.

        `request` is one whole request as it came, `head` what the parser has read of it. That all bytes behind the
        first blank line are as many as content-length says is checked, so that the header does end there.
        """
        header, _, body = request.partition(b"\r\n\r\n")
        first, *lines = header.split(b"\r\n")
        names, pieces, length = [], [first], -1
        for line in lines:
            name, _, text = line.partition(b":")
            name, value = name.lower(), text.lstrip(b" ")
            pieces[-1] += b"\r\n" + line
            if name in MAY_DIFFER:
                if not _usual(name, value):
                    return None
                pieces[-1] = pieces[-1].removesuffix(value)
                pieces.append(b"")
                names.append(name)
                length = int(value) if name == CONTENT_LENGTH else length
        pieces[-1] += b"\r\n\r\n"
        plain = first.startswith(b"POST ") and first.endswith(b" HTTP/1.1")
        if not plain or length != len(body):
            return None
        return cls(pieces[0], tuple(zip(names, pieces[1:], strict=True)), head)

    def match(self, request: bytes) -> tuple[RequestHead, int, bytes] | None:
        """Match the bytes that have come of a request against this header.

        Returns what its header says, the length that is announced and what has come of the body; None if the header
        differs in anything that matters, or is not whole.
        """
        end = request.find(b"\r\n\r\n") + 4
        same = self._same.get(request[:end])
        if same is not None:
            return *same, request[end:]
        if not request.startswith(self.start):
            return None
        at = len(self.start)
        values: dict[bytes, bytes] = {}
        for name, behind in self.rest:
            end = request.find(b"\r", at, at + MAX_VALUE_BYTES + 1)
            if end < 0 or not request.startswith(behind, end):
                return None
            value = request[at:end]
            if not _usual(name, value):
                return None
            values.setdefault(name, value)  # of equal names the first one counts
            at = end + len(behind)
        head, length = self.head.but_for(values), int(values[CONTENT_LENGTH])
        if at <= MAX_SAME_BYTES and values.keys() <= SELDOM_DIFFER:
            if len(self._same) == MAX_SAME:
                self._same.clear()
            self._same[request[:at]] = head, length
        return head, length, request[at:]


def _usual(name: bytes, value: bytes) -> bool:
    """Whether a header's value, of those that may differ, is what the parser takes it for."""
    if name == CONTENT_LENGTH:
        return LENGTH.fullmatch(value) is not None
    return len(value) <= MAX_VALUE_BYTES and TEXT.fullmatch(value) is not None
