"""Around every request: its id, its metrics, its line in the log, and the last net for bugs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooSlow, DeadlinePassed, NotReady, ServiceError
from app.http.connections import WHOLE
from app.http.problems import PROBLEM_TYPE, SECURITY_HEADERS, problem_body, problem_headers
from app.http.request_ids import given_id_in, request_id_of
from app.lifecycle import State
from app.service import Service

log = logging.getLogger(__name__)

DISCARD_BYTES = 64 << 20
DISCARD_S = 5.0
TOO_SLOW = frozenset({BodyTooSlow.status, DeadlinePassed.status})


def problem_response(
    error: ServiceError, request_id: str | None, more_headers: Mapping[str, str] | None = None
) -> Response:
    """Turn an error into `application/problem+json`, with the headers that its status asks for."""
    headers = {**(more_headers or {}), **problem_headers(error)}
    body = problem_body(error, request_id)
    return Response(body, status_code=error.status, headers=headers, media_type=PROBLEM_TYPE)


def _no() -> bool:
    return False


class BodyWatch:
    """Knows whether a request's body has been read to its end, and reads what is left of a refused one.

    A client that is still sending does not see an answer before its last byte is taken, or before it meets a reset.
    """

    def __init__(self, head: Mapping[bytes, bytes], receive: Receive, whole: Mapping[str, Callable[[], bool]]) -> None:
        self._receive = receive
        self._is_here = whole.get("body_is_here", _no)
        self._awaits_100_continue = whole.get("awaits_100_continue", _no)
        self._given_up = False
        self.complete = head.get(b"content-length", b"0") == b"0" and b"transfer-encoding" not in head

    async def receive(self) -> Message:
        """Receive the next message for the application."""
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self.complete = True
        return message

    def give_up(self) -> None:
        """Read no more: there is no time for it."""
        self._given_up = True

    async def discard_rest(self, status: int) -> None:
        """Read on to the end, within bounds, unless the client was too slow already or still awaits 100 Continue."""
        self.complete = self.complete or self._is_here()
        if self._given_up or self.complete or self._awaits_100_continue() or status in TOO_SLOW:
            return
        left_bytes = DISCARD_BYTES
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self.complete and left_bytes > 0:
                    left_bytes -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


class RequestContext:
    """Plain ASGI middleware; the route's template, not the raw path, labels the metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and see to what surrounds it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        head = dict(reversed(scope["headers"]))  # of equal names the first one, as heads.py has it
        request_id = request_id_of(given_id_in(head))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        sent = False
        start: Message | None = None
        whole = scope.get("extensions", {}).get(WHOLE, {})
        body = BodyWatch(head, receive, whole)

        async def send_with_headers(message: Message) -> None:
            nonlocal status, start, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                await body.discard_rest(status)
                headers = [*message["headers"], (b"x-request-id", request_id.encode()), *SECURITY_HEADERS]
                if self.service.lifecycle.state is not State.READY or not body.complete:
                    # Not ready: clients move to another instance before the port closes. Incomplete body: uvicorn
                    # would go on reading it, without limit of time or size.
                    headers.append((b"connection", b"close"))
                message["headers"] = headers
                start = message
                return
            if start is not None:  # it waits here for the body, so that both can be sent at once
                first, start, sent = start, None, True
                if whole and scope["method"] != "HEAD" and not message.get("more_body", False):
                    await whole["respond"](status, first["headers"], message.get("body", b""))
                    return
                await send(first)
            await send(message)

        # What answers GET answers HEAD (RFC 9110): the connection leaves the body out, by its own scope.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self.app(inner, body.receive, send_with_headers)
        except asyncio.CancelledError:  # the drain's time is over, perhaps while the rest of a refused body was read
            body.give_up()
            if not sent:
                self.service.telemetry.record_refusal(NotReady.code)
                await problem_response(NotReady(), request_id)(scope, receive, send_with_headers)
        except Exception:
            log.exception(
                "request %s failed", request_id, extra={"request_id": request_id, "status": ServiceError.status}
            )
            if not sent:
                self.service.telemetry.record_refusal(ServiceError.code)
                await problem_response(ServiceError(), request_id)(scope, receive, send_with_headers)
        finally:
            self._record(inner, request_id, status, time.perf_counter() - started)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self.service.telemetry.record_answer(route, status or 499, seconds)
        if log.isEnabledFor(logging.DEBUG):
            seen = {"request_id": request_id, "route": route, "status": status, "seconds": seconds}
            log.debug("%s %s %d %.1f ms id=%s", scope["method"], route, status, seconds * 1000, request_id, extra=seen)
