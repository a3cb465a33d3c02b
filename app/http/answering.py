"""A connection as far as it answers: from the start of an application's task to the last byte of its answer.

What follows an answer, the next request or the connection's end, is decided in connections.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Unpack

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.errors import ServiceError
from app.http.connection_limits import ConnectionLimits
from app.http.ending import DISCARD_S, Ending
from app.http.parsing import ParsingConnection, UvicornOptions
from app.http.problems import CLOSE, Headers, date_line, header_lines, problem_answers
from app.http.request_ids import given_id_in, request_id_of

# For how long what a refused client still sends is thrown away; DISCARD_S if it sent `Expect: 100-continue`, and may
# send its body all the same.
LINGER_S = 1.0

# A larger answer is sent in pieces of this size, as its client reads them.
RESPONSE_PIECE_BYTES = 64 << 10

CLOSE_LINE = header_lines([CLOSE])

# Where the connection stands among a scope's extensions. ASGI itself has messages only: that a client has left is one
# that a task has to wait for, and an answer is two of them, which are two writes to the network.
CONNECTION = "resnet.connection"


class AnsweringConnection(ParsingConnection):
    """uvicorn's connection, which sends answers whole and ends in time.

    Applications find it by `connection_of`, and may call what is public, for the request that they answer.
    `refused_with` is the error that this request was answered with, whatever its application answers.

    Subclasses set `_closing` and `_close_after_response`, which decide what answer is the last one.
    """

    def __init__(self, *, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._ending: Ending
        self._closing = False  # whether the connection is to be closed after what is under way
        self._close_after_response = False  # whether it is to be closed after its next response
        self._active: RequestResponseCycle | None = None  # is being answered; uvicorn's `cycle` is being read
        self.refused_with: ServiceError | None = None
        self._gone = False
        self._when_gone: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read."""
        super().connection_made(transport)
        self._ending = Ending(self._limits, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Let the active request know that its client has left."""
        self._ending.over()
        super().connection_lost(exc)
        self._gone = True
        if self._active is not None:  # uvicorn lets only the newest one know
            self._forget(self._active)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin to answer a request by the application, which finds this connection in the scope."""
        self._active = cycle
        cycle.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def _answering(self) -> bool:
        """Whether a request is being read or answered, or waits behind one that is."""
        return bool(self.pipeline) or not (self._active is None or self._active.response_complete)

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a part of a request that takes longer; it is cancelled when a drain's time is over."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

    # -- what an application may call

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` as soon as the client has left, at once if it has; None unregisters the callback."""
        self._when_gone = callback
        if self._gone and callback is not None:
            callback()
        elif not self._gone:
            self.flow.resume_reading()  # a large body's last piece has paused it, and only a reader sees the end

    @property
    def gone(self) -> bool:
        """Whether the client has left."""
        return self._gone

    def body_is_here(self) -> bool:
        """Whether the active request has come to its end, so that nothing of it has to be waited for."""
        return self._active is not None and not self._active.more_body

    def awaits_100_continue(self) -> bool:
        """Whether the active request's client sent `Expect: 100-continue` and has not been sent 100 Continue."""
        return self._active is not None and self._active.waiting_for_100_continue

    def require_room(self, count: int) -> None:
        """Raise QueueFull if an answer of `count` bytes is large, and clients leave too much unread."""
        if count > RESPONSE_PIECE_BYTES:
            self._ending.require_room(count)

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the active request's answer at once, where ASGI's two messages would be two writes to the network.

        To HEAD `body` is empty, whatever length is among the headers.

        Raises QueueFull for a large one, of which nothing is sent, while clients leave too much unread.
        """
        cycle = self._active
        assert cycle is not None
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        kept, close = _without_close(headers)
        lines = header_lines(kept)
        if len(body) <= RESPONSE_PIECE_BYTES:
            self.send_answer(status, lines, body, close=close)
        elif not cycle.disconnected:
            await self._send_in_pieces(cycle, status, lines, body, close=close)

    def headers_of_pieces(self, headers: Headers) -> Headers:
        """Return the headers of an answer that ASGI's messages will send, which say whether it is the last one."""
        assert self._active is not None
        kept, close = _without_close(headers)
        if self._settle_end(self._active, close=close):
            kept.append(CLOSE)
        return kept

    # -- answers

    def send_answer(self, status: int, lines: bytes, body: bytes, *, close: bool) -> None:
        """Send the active request's answer, whole, unless its client has left.

        `lines` are its header's own, with `close` the connection is to end after it.
        """
        cycle = self._active
        assert cycle is not None
        if cycle.disconnected or cycle.response_complete:
            return
        self.transport.write(self._answer_head(cycle, status, lines, close=close) + body)
        self._end_answer(cycle)

    async def _send_in_pieces(
        self, cycle: RequestResponseCycle, status: int, lines: bytes, body: bytes, *, close: bool
    ) -> None:
        """Send a large answer as its client reads it; it counts as unread until the last piece is on its way."""
        with self._ending.holding(len(body)):
            cycle.response_started = True
            self.transport.write(self._answer_head(cycle, status, lines, close=close))
            for begin in range(0, len(body), RESPONSE_PIECE_BYTES):
                if self.flow.write_paused:
                    await self.flow.drain()
                if cycle.disconnected:
                    return
                self.transport.write(body[begin : begin + RESPONSE_PIECE_BYTES])
        self._end_answer(cycle)

    def _answer_head(self, cycle: RequestResponseCycle, status: int, lines: bytes, *, close: bool) -> bytes:
        """Return an answer's header, once it is settled whether the connection ends after it."""
        last = CLOSE_LINE if self._settle_end(cycle, close=close) else b""
        return b"%b%b%b%b\r\n" % (STATUS_LINE[status], date_line(), lines, last)

    def _settle_end(self, cycle: RequestResponseCycle, *, close: bool) -> bool:
        """Settle, and return, whether the connection ends after this answer: if that asks for it, or is the last one.

        Not while accepted requests wait behind it.
        """
        last = close or self._closing or self._close_after_response
        if last and (cycle.more_body or not (self.pipeline or self._unparsed)):
            cycle.keep_alive = False
        return not cycle.keep_alive

    def _end_answer(self, cycle: RequestResponseCycle) -> None:
        """Mark a request as answered, and close or linger unless the connection is kept."""
        unasked = cycle.waiting_for_100_continue
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if cycle.more_body and (unasked or not cycle.keep_alive):
            self._linger(DISCARD_S if unasked else LINGER_S)
        elif not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def _refuse(self, error: ServiceError, scope: Mapping[str, Any]) -> None:
        """Answer a request with a problem, and close."""
        self._limits.on_refused(error.code)
        self._unset_keepalive_if_required()
        given = given_id_in(dict(reversed(scope["headers"])))  # of equal names the first one
        # The application may have begun already, or begin now, and logs it under the same id.
        request_id = scope["state"].setdefault("request_id", request_id_of(given))
        answer = problem_answers(error, close=True)(request_id)
        if scope["method"] == "HEAD":
            answer = answer.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        self.transport.write(answer)
        self._linger(LINGER_S)

    # -- clients that have left, still send, or do not read

    def _forget(self, cycle: RequestResponseCycle) -> None:
        """Let a request know that nobody waits for its answer."""
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False  # nothing is written behind a refusal
        cycle.message_event.set()
        if self._when_gone is not None:
            self._when_gone()

    def _linger(self, seconds: float) -> None:
        """Send no more; throw away what the client still sends for at most `seconds`, then close."""
        self._ending.linger(seconds)
        if not self.transport.is_closing():
            self.flow.resume_reading()  # a large body's last piece has paused it

    def pause_writing(self) -> None:
        """Limit the time of a client that does not read; abort if too much is unread already."""
        super().pause_writing()
        self._ending.pause()

    def resume_writing(self) -> None:
        """Lift that limit: the client has read."""
        super().resume_writing()
        self._ending.resume()


def _without_close(headers: Headers) -> tuple[Headers, bool]:
    """Return the headers but for CLOSE, and whether that was among them."""
    kept = [line for line in headers if line != CLOSE]
    return kept, len(kept) < len(headers)


def connection_of(scope: Scope) -> AnsweringConnection:
    """Return the connection that a request came on."""
    connection: AnsweringConnection = scope["extensions"][CONNECTION]
    return connection
