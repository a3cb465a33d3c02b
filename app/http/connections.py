"""One client's connection. What uvicorn would keep open for ever ends here: silence, half a header, an unread answer.

The body's time is kept by `read_body` and, for small ones, by fast_connections.py; the time between two requests by
uvicorn's own keep-alive timer.
"""

from __future__ import annotations

import asyncio
import math
import random
import select
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from operator import itemgetter
from typing import Any, Unpack

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from app.errors import TOO_MANY_CONNECTIONS, HeaderTooSlow, MalformedRequest, QueueFull, ServiceError
from app.http.asgi_extension import CONNECTION
from app.http.connection_limits import ConnectionLimits
from app.http.dates import date_line
from app.http.ending import DISCARD_S, Ending
from app.http.parsing import ParsingConnection, UvicornOptions
from app.http.problems import Headers, problem_answers
from app.http.request_ids import given_id_in, request_id_of

LATE_S = 0.05

# What a refused client still sends is thrown away for so long; where it sent `Expect: 100-continue`, and may send its
# body all the same, for DISCARD_S.
LINGER_S = 1.0

# For a header of which a part has come when the connection is to be closed: the rest is on its way, or never comes.
LAST_HEADER_S = 0.5

# Of those that are open when there are too many, so many are looked at for the one that has been idle for longest:
# enough to find a long idle one where there are many, and little work where connections come in crowds.
LOOKED_AT = 64

# What has been idle for less may have a request on the way.
LONG_IDLE_S = 1.0

# By which share a connection's age differs, so that those that were opened together are not all closed together.
AGE_SPREAD = 0.1

# A larger answer is sent in such pieces, as its client reads them.
RESPONSE_PIECE_BYTES = 64 << 10


class Connection(ParsingConnection):
    """uvicorn's connection with a time limit on headers and unread answers, and a limit on how many there are.

    The header's time runs from the opening of the connection, or from the first byte after an answer, to the header's
    end: a byte now and then does not prolong it.
    """

    def __init__(self, *, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(**uvicorns)
        self._limits = limits
        self._ending: Ending
        self._last = False  # whether the connection is to be closed after what is under way
        self._old = False  # whether it is to be closed after its next response
        self._active: RequestResponseCycle | None = None  # is answered; uvicorn's `cycle` is the one that is read
        self._refusal: Callable[[], None] | None = None  # of what follows a request that is not answered yet
        self.refused_with: ServiceError | None = None  # the active request was, whatever the application answers
        self.heard = False  # whether the client has sent anything yet
        self._gone = False
        self._when_gone: Callable[[], None] | None = None
        self._header_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None

    # -- what the client does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first header; where there are too many connections, one of them has to go."""
        super().connection_made(transport)
        self._ending = Ending(self._limits, transport)
        if len(self.connections) > self._limits.max_connections:
            self._limits.on_refused(TOO_MANY_CONNECTIONS)
            if not self._make_room():
                transport.abort()
                return
        if self._limits.max_age_s < math.inf:
            spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311 - no secret
            self._age_timer = self.loop.call_later(self._limits.max_age_s * spread, self._grow_old)
        self._watch()

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest, of those looked at; return whether there was one."""
        others = [one for one in islice(self.connections, LOOKED_AT) if isinstance(one, Connection) and one is not self]
        idle = [
            (since, one)
            for one in others
            if (since := one.idle_since()) is not None
            and since <= self.loop.time() - LONG_IDLE_S
            and not one._has_unread()
        ]
        if not idle:
            return False
        min(idle, key=itemgetter(0))[1].transport.abort()
        return True

    def idle_since(self) -> float | None:
        """Return since when, by the loop's time, the client has had all that it asked for; None while it has not."""
        if self._stopped_reading() or self._answering() or self._header_begun or self._ending.is_unread():
            return None
        if self.timeout_keep_alive_task is not None:
            return self.timeout_keep_alive_task.when() - self.timeout_keep_alive
        if self._header_timer is not None:
            return self._header_timer.when() - self._limits.header_timeout_s
        return None

    def _grow_old(self) -> None:
        """Close after the next response, which says so: the client's next connection may be to another replica."""
        self._old = True

    def data_received(self, data: bytes) -> None:
        """Take bytes of a header or a body; those that follow a refusal are thrown away."""
        self.heard = True
        if self._ending.lingers:
            self._ending.throw_away(len(data))
        if self._stopped_reading():
            return
        if self._unparsed:  # was on its way already when reading was switched off
            self._unparsed += data
            return
        self._unset_keepalive_if_required()
        self.parse(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        for timer in (self._header_timer, self._age_timer):
            if timer is not None:
                timer.cancel()
        self._ending.over()
        self._unset_keepalive_if_required()  # uvicorn leaves it running where the client has reset the connection
        super().connection_lost(exc)
        self._gone = True
        if self._active is not None:  # uvicorn tells the newest only
            self._forget(self._active)

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` as soon as the client has left, at once if it has; None unregisters the callback."""
        self._when_gone = callback
        if self._gone and callback is not None:
            callback()
        elif not self._gone:
            self.flow.resume_reading()  # a large body's last piece has paused it, and only a reader sees the end

    def shutdown(self) -> None:
        """Close once what the client has sent is answered, a request among it that lies unread in the socket."""
        self._last = True
        if self._answering() or self._ending.lingers:
            return  # behind the last answer it comes here again
        if self._header_begun or self._has_unread():
            self._watch()
        else:
            self._ending.close_idle()

    def _has_unread(self) -> bool:
        """Whether the client has sent something that the event loop has not read yet, or the parser has not."""
        if self._unparsed:
            return True
        socket = self.transport.get_extra_info("socket")
        if socket is None or self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    # -- what becomes of answers

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin to answer a request: the application may call this connection, a `ClientConnection`."""
        self._active = cycle
        cycle.scope["extensions"] = {CONNECTION: self}  # type: ignore[dict-item]
        super()._start_asgi_task(cycle, app)

    def body_is_here(self) -> bool:
        """Whether the active request has come to its end, so that nothing of it has to be waited for."""
        return self._active is not None and not self._active.more_body

    def awaits_100_continue(self) -> bool:
        """Whether the active request's client sent `Expect: 100-continue` and has not been sent 100 Continue."""
        return self._active is not None and self._active.waiting_for_100_continue

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the active request's answer at once, where ASGI's two messages would be two writes to the network."""
        cycle = self._active
        assert cycle is not None
        if self.flow.write_paused and not cycle.disconnected:
            await self.flow.drain()
        if len(body) <= RESPONSE_PIECE_BYTES:
            self.send_answer(status, headers, body)
        elif not cycle.disconnected:
            await self._send_in_pieces(cycle, self._response_head(cycle, status, headers), body)

    def send_answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the active request's answer, whole, unless its client has left."""
        cycle = self._active
        assert cycle is not None
        if cycle.disconnected or cycle.response_complete:
            return
        self.transport.write(self._response_head(cycle, status, headers) + body)
        self._end_answer(cycle)

    async def _send_in_pieces(self, cycle: RequestResponseCycle, head: bytes, body: bytes) -> None:
        """Send a large answer as its client reads it; it counts as unread until the last piece is on its way."""
        try:
            with self._ending.holding(len(body)):
                cycle.response_started = True
                self.transport.write(head)
                for begin in range(0, len(body), RESPONSE_PIECE_BYTES):
                    if self.flow.write_paused:
                        await self.flow.drain()
                    if cycle.disconnected:
                        return
                    self.transport.write(body[begin : begin + RESPONSE_PIECE_BYTES])
        except QueueFull:
            self._ending.refuse()
            self._forget(cycle)
            return
        self._end_answer(cycle)

    def _response_head(self, cycle: RequestResponseCycle, status: int, headers: Headers) -> bytes:
        """Return an answer's header. The last one closes, but not while requests that were accepted wait behind it."""
        lines = [STATUS_LINE[status], date_line()]
        last = self._last or self._old
        for name, value in headers:
            if name == b"connection" and value == b"close":
                last = True
            else:
                lines += (name, b": ", value, b"\r\n")
        if last and (cycle.more_body or not (self.pipeline or self._unparsed)):
            cycle.keep_alive = False
        if not cycle.keep_alive:
            lines.append(b"connection: close\r\n")
        lines.append(b"\r\n")
        return b"".join(lines)

    def _end_answer(self, cycle: RequestResponseCycle) -> None:
        unasked = cycle.waiting_for_100_continue
        cycle.waiting_for_100_continue = False
        cycle.response_started = cycle.response_complete = True
        cycle.message_event.set()
        if cycle.more_body and (unasked or not cycle.keep_alive):
            self._linger(DISCARD_S if unasked else LINGER_S)
        elif not cycle.keep_alive:
            self.transport.close()
        cycle.on_response()

    def on_response_complete(self) -> None:
        """Go on to the next request; a part of its header may be here already, or its refusal."""
        if self._active is not None and self._active.body:
            self._active.body = bytearray()  # of a refused request, which an idle connection would keep
        super().on_response_complete()
        if self.transport.is_closing():
            self._ending.close()
        elif self._ending.lingers or self._header_begun:
            self._unset_keepalive_if_required()
        elif self._refusal is not None and not self._answering():
            self._refusal()
        self._watch()
        if self._last:
            self.shutdown()

    def pause_writing(self) -> None:
        """The client does not read its answer; it has a while to begin, unless too much lies unread already."""
        super().pause_writing()
        self._ending.pause()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        self._ending.resume()

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never takes the rest of its last answer."""
        self._ending.close_idle()

    # -- headers that do not come, and what is no HTTP

    def _answering(self) -> bool:
        """Whether a request is being read or answered, or waits behind one that is."""
        return bool(self.pipeline) or not (self._active is None or self._active.response_complete)

    def _stopped_reading(self) -> bool:
        """Whether nothing more is read: what came was refused, or will be after the answers to requests before it."""
        return self._ending.lingers or self._refusal is not None or self.transport.is_closing()

    def _watch(self) -> None:
        """Let the header's time run exactly while a header is awaited and the keep-alive timer does not run."""
        if self._stopped_reading() or self._answering() or self.timeout_keep_alive_task is not None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
            return
        seconds = LAST_HEADER_S if self._last else self._limits.header_timeout_s
        if self._header_timer is not None:
            if not self._last or self._header_timer.when() <= self.loop.time() + seconds:
                return
            self._header_timer.cancel()
        self._header_timer = self.loop.call_later(seconds, self._header_late)

    def _header_late(self) -> None:
        # If this very process was slow, the header may lie unread in the socket: one more turn of the loop reads it.
        self._header_timer = self.loop.call_later(LATE_S, self._close_late)

    def _close_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self._header_begun and not self._last:  # else nobody has the time to hand over a refusal
            self._refuse(HeaderTooSlow(), self._head_so_far())
        else:
            self._ending.close_idle()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; overrides uvicorn's plain text. Requests before it, accepted ones, come first."""
        self._header_begun = False
        error = MalformedRequest("This is not an HTTP request that can be read, or its header is too large.")
        broken = self.cycle if self._answering() and self.cycle.more_body else None
        refuse = partial(self._refuse, error, self._head_so_far() if broken is None else broken.scope)
        if broken is not None and self.pipeline:  # its body is, and it has not begun to be answered
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else self._active  # type: ignore[assignment]
        elif broken is not None:
            self._forget(broken)
            if broken.response_started:
                self._ending.close()
            else:
                self.refused_with = error
                refuse()
            return
        if self._answering():
            self._refusal = refuse
        else:
            refuse()

    def _head_so_far(self) -> Mapping[str, Any]:
        """Return what a refusal needs of the scope of a request that did not get so far, from what was parsed of it."""
        method = self.parser.get_method().decode() if self.url else ""  # which the parser keeps from one to the next
        return {"method": method, "headers": self.headers, "state": {}}

    def _forget(self, cycle: RequestResponseCycle) -> None:
        """Let a request know that nobody waits for its answer."""
        cycle.disconnected = True
        cycle.waiting_for_100_continue = False  # nothing is written behind a refusal
        cycle.message_event.set()
        if self._when_gone is not None:
            self._when_gone()

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

    def _linger(self, seconds: float) -> None:
        """Send no more, and close once the client has had its time to send what it is sending."""
        self._ending.linger(seconds)
        if not self.transport.is_closing():
            self.flow.resume_reading()  # a large body's last piece has paused it
