"""Errors as `application/problem+json` (RFC 9457): their bytes and headers, whichever way the answer takes."""

from __future__ import annotations

import json
from functools import lru_cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from app.errors import ServiceError, problem_object

Headers = list[tuple[bytes, bytes]]

# On every answer. There is no CORS: no page of another origin is meant to read an answer.
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
]

PROBLEM_TYPE = "application/problem+json"


def problem_headers(error: ServiceError) -> dict[str, str]:
    """Return the headers that an error's status asks for."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def problem_body(error: ServiceError, request_id: str | None) -> bytes:
    """Return the problem with the request's id, as JSON. The id is sane: nothing in it needs escaping."""
    beginning = _beginning(error.code, error.title, error.status, error.detail)
    quoted = b"null" if request_id is None else b'"%s"' % request_id.encode()
    return b'%s, "request_id": %s}' % (beginning, quoted)


def problem_answer(error: ServiceError, request_id: str, *, close: bool = False) -> bytes:
    """Return the whole HTTP answer; with `close` it announces the connection's end. The id is sane."""
    body = problem_body(error, request_id)
    head = _head(error.status, tuple(problem_headers(error).items()), close)
    return b"%scontent-length: %d\r\nx-request-id: %s\r\n\r\n%s" % (head, len(body), request_id.encode(), body)


@lru_cache(maxsize=256)
def _head(status: int, own: tuple[tuple[str, str], ...], close: bool) -> bytes:
    headers = [(b"content-type", PROBLEM_TYPE.encode()), *SECURITY_HEADERS]
    headers += [(name.encode(), value.encode()) for name, value in own]
    if close:
        headers.append((b"connection", b"close"))
    return STATUS_LINE[status] + b"".join(b"%s: %s\r\n" % header for header in headers)


@lru_cache(maxsize=256)  # texts are fixed: in an overload the same one is sent thousands of times a second
def _beginning(code: str, title: str, status: int, detail: str) -> bytes:
    return json.dumps(problem_object(code, title, status, detail))[:-1].encode()
