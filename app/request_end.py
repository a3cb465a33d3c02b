"""The end of a request, the same whichever way it is answered: its last headers, what is counted, what the log says."""

from __future__ import annotations

import logging

from app.errors import ClientGone, ServiceError
from app.http.problems import CLOSE, SECURITY_HEADERS, Headers, header_lines
from app.telemetry import Telemetry

log = logging.getLogger(__name__)


def log_failure(error: BaseException, problem: ServiceError, request_id: str, route: str | None = None) -> None:
    """Log what failed for no reason of the client's: `error`, if what it is answered with, `problem`, is a 500.

    With its trace if nothing here raises it on purpose; else what failed was logged with the batch.
    """
    if problem.status != ServiceError.status:
        return
    seen = {"request_id": request_id, "status": problem.status} | ({"route": route} if route is not None else {})
    if problem is error:
        log.error("request %s failed with its batch", request_id, extra=seen)
    else:
        log.error("request %s failed", request_id, exc_info=error, extra=seen)


def count_refusal(telemetry: Telemetry, problem: ServiceError) -> None:
    """Count what a request is refused for; that its client has gone is none."""
    if not isinstance(problem, ClientGone):
        telemetry.record_refusal(problem.code)


def add_last_headers(headers: Headers, request_id: str, *, close: bool) -> None:
    """Add the headers that every answer has, and with `close` the one that announces the connection's end."""
    headers += [(b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
    if close:
        headers.append(CLOSE)


SECURITY_LINES = header_lines(SECURITY_HEADERS)


def last_lines(request_id: str, length: int) -> bytes:
    """Return the lines that end the header of an answer of `length` bytes, whoever it is from."""
    return b"content-length: %d\r\nx-request-id: %b\r\n%b" % (length, request_id.encode(), SECURITY_LINES)


def record_answer(
    telemetry: Telemetry, request_id: str, *, method: str, route: str, status: int, seconds: float
) -> None:
    """Record an answer in the metrics and, at level DEBUG, in the log; `route` is the route's template."""
    telemetry.record_answer(route, status, seconds)
    if log.isEnabledFor(logging.DEBUG):
        seen = {"request_id": request_id, "route": route, "status": status, "seconds": seconds}
        log.debug("%s %s %d %.1f ms id=%s", method, route, status, seconds * 1000, request_id, extra=seen)
