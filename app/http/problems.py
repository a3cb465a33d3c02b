"""Errors as `application/problem+json` (RFC 9457): bytes and headers, whichever way they take; every answer's date."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from email.utils import formatdate
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

# On a connection's last answer.
CLOSE = (b"connection", b"close")

PROBLEM_TYPE = "application/problem+json"


def header_lines(headers: Headers) -> bytes:
    """Return the lines of a header."""
    return b"".join([b"%b: %b\r\n" % line for line in headers])


def date_line() -> bytes:
    """Return the line of the Date header (RFC 9110, 6.6.1), made once a second: thousands of answers bear the same one.

    It is for answers that do not go through uvicorn's own sending.
    """
    return _date_line(int(time.time()))


@lru_cache(maxsize=1)
def _date_line(second: int) -> bytes:
    return b"date: %s\r\n" % formatdate(second, usegmt=True).encode()


def problem_headers(error: ServiceError) -> dict[str, str]:
    """Return the headers that an error's status asks for."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(error.retry_after_s)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return headers


def problem_fields(error: ServiceError) -> Headers:
    """Return `problem_headers` and the content type, as a connection sends them."""
    headers = {"content-type": PROBLEM_TYPE, **problem_headers(error)}
    return [(name.encode(), value.encode()) for name, value in headers.items()]


def problem_body(error: ServiceError, request_id: str) -> bytes:
    """Return the problem with the request's id, as JSON. The id is sane: nothing in it needs escaping."""
    return _with_id(_beginning(error.code, error.title, error.status, error.detail), request_id)


def problem_answers(error: ServiceError, *, close: bool = False) -> Callable[[str], bytes]:
    """Return a function from a request's id, which is sane, to the whole HTTP answer; `close` announces the end.

    What is the same for all requests is made here, once: in an overload the rest is done thousands of times a second.
    """
    headers = [*problem_fields(error), *SECURITY_HEADERS]
    if close:
        headers.append(CLOSE)
    head = STATUS_LINE[error.status] + date_line() + header_lines(headers)
    beginning = _beginning(error.code, error.title, error.status, error.detail)

    def answer(request_id: str) -> bytes:
        body = _with_id(beginning, request_id)
        return b"%scontent-length: %d\r\nx-request-id: %s\r\n\r\n%s" % (head, len(body), request_id.encode(), body)

    return answer


def _with_id(beginning: bytes, request_id: str) -> bytes:
    return b'%s, "request_id": "%s"}' % (beginning, request_id.encode())


@lru_cache(maxsize=256)  # texts are fixed
def _beginning(code: str, title: str, status: int, detail: str) -> bytes:
    return json.dumps(problem_object(code, title, status, detail))[:-1].encode()
