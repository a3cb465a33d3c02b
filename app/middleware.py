"""Around every request: its id, its metrics, its line in the log, and the last net for bugs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BodyTooSlow, ClientGone, DeadlinePassed, NotReady, QueueFull, ServiceError
from app.exception_handlers import problem_response
from app.http.answering import AnsweringConnection, connection_of
from app.http.ending import DISCARD_BYTES, DISCARD_S
from app.http.problems import Headers
from app.http.request_ids import given_id_in, request_id_of
from app.lifecycle import State
from app.request_end import add_last_headers, count_refusal, log_failure, record_answer
from app.service import Service

TOO_SLOW = frozenset({BodyTooSlow.status, DeadlinePassed.status})


class BodyWatch:
    """Knows whether a request's body has been read to its end, and reads what is left of a refused one.

    A client that is still sending sees an answer only once its last byte is read, or finds a reset in its place.
    """

    def __init__(self, head: Mapping[bytes, bytes], receive: Receive, connection: AnsweringConnection) -> None:
        self._receive = receive
        self._connection = connection
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
        self.complete = self.complete or self._connection.body_is_here()
        if self._given_up or self.complete or self._connection.awaits_100_continue() or status in TOO_SLOW:
            return
        left_bytes = DISCARD_BYTES
        try:
            async with asyncio.timeout(DISCARD_S):
                while not self.complete and left_bytes > 0:
                    left_bytes -= len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


class _Response:
    """The response to one request, on its way to the client. `status` is 0 until the application has answered."""

    def __init__(self, service: Service, scope: Scope, receive: Receive, send: Send) -> None:
        head = dict(reversed(scope["headers"]))  # of equal names the first one, as cached_headers.py has it
        self.connection = connection_of(scope)
        state = scope.setdefault("state", {})  # has an id where the connection has refused the request already
        self.request_id: str = state.setdefault("request_id", request_id_of(given_id_in(head)))
        self.request_body = BodyWatch(head, receive, self.connection)
        self.status = 0
        self._service = service
        self._scope = scope
        self._send = send
        self._start: Message | None = None  # waits here for the body, so that both can be sent at once
        self._sent = False

    async def send(self, message: Message) -> None:
        """Send a message of the application, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            await self.request_body.discard_rest(self.status)
            headers: Headers = [*message["headers"]]
            # Not ready: clients move to another instance before the port closes. Incomplete body: uvicorn would go on
            # reading it, without limit of time or size.
            close = self._service.lifecycle.state is not State.READY or not self.request_body.complete
            add_last_headers(headers, self.request_id, close=close)
            message["headers"] = headers
            self._start = message
            return
        start, self._start = self._start, None
        is_head = self._scope["method"] == "HEAD"  # its answer ends with its header
        if start is None:
            if not is_head:
                await self._send(message)
            return
        self._sent = True
        if message.get("more_body", False) and not is_head:
            start["headers"] = self.connection.headers_of_pieces(start["headers"])
            await self._send(start)
            await self._send(message)
            return
        try:
            await self.connection.respond(self.status, start["headers"], b"" if is_head else message.get("body", b""))
        except QueueFull as error:  # nothing of it was sent
            self._sent = False
            await self.refuse(error)

    async def refuse(self, error: ServiceError) -> None:
        """Answer with a problem in place of the application, unless its own answer has begun to be sent."""
        if not self._sent:
            count_refusal(self._service.telemetry, error)
            await problem_response(error, self.request_id)(self._scope, self.request_body.receive, self.send)


def _route_of(scope: Scope) -> str:
    """Return the template of the route that a request went to; of files, the folder that is mounted."""
    if "route" in scope:
        return str(scope["route"].path)
    # FastAPI names its own routes only, and leaves Starlette's with what they call.
    endpoint = scope.get("endpoint")
    others = (route for route in scope["app"].routes if isinstance(route, Route | Mount)) if endpoint else ()
    return next(
        (route.path for route in others if endpoint in (getattr(route, "endpoint", None), route.app)), "unmatched"
    )


class RequestContext:
    """Plain ASGI middleware; the route's template, not the raw path, labels the metrics."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request to the application; record it, and answer what was not caught."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        response = _Response(self.service, scope, receive, send)
        # What answers GET answers HEAD (RFC 9110): its body is left out where it is sent.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self.app(inner, response.request_body.receive, response.send)
        except asyncio.CancelledError:  # the drain's time is over, perhaps while the rest of a refused body was read
            response.request_body.give_up()
            await response.refuse(NotReady())
        except Exception as error:
            problem = ServiceError()
            log_failure(error, problem, response.request_id)
            await response.refuse(problem)
        finally:
            self._record(inner, response, time.perf_counter() - started)

    def _record(self, scope: Scope, response: _Response, seconds: float) -> None:
        refusal = response.connection.refused_with
        status = refusal.status if refusal is not None else response.status or ClientGone.status
        record_answer(
            self.service.telemetry,
            response.request_id,
            method=scope["method"],
            route=_route_of(scope),
            status=status,
            seconds=seconds,
        )
