"""One client's connection. What uvicorn would keep open for ever ends here: silence, half a header, an unread answer.

The time of a body is limited by `read_body` and, if it is small, by fast_connections.py; the time between two requests
by uvicorn's own keep-alive timer.
"""

from __future__ import annotations

import asyncio
import math
import random
import select
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Unpack

from app.errors import TOO_MANY_CONNECTIONS, HeaderTooSlow, MalformedRequest
from app.http.answering import AnsweringConnection
from app.http.connection_limits import ConnectionLimits, close_longest_idle
from app.http.parsing import UvicornOptions

LATE_S = 0.05  # see `_header_late`

# How long a begun header may take once the connection is to be closed: the rest is on its way, or never comes.
LAST_HEADER_S = 0.5

# By up to this share connections' ages differ, so that those that were opened together are not all closed together.
AGE_SPREAD = 0.1


class Connection(AnsweringConnection):
    """uvicorn's connection with a time limit on headers and unread answers, and a limit on how many there are.

    The header's time runs from the opening of the connection, or from the first byte after an answer, to the header's
    end: a byte now and then does not prolong it.
    """

    def __init__(self, *, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(limits=limits, **uvicorns)
        self._refusal: Callable[[], None] | None = None  # to be sent once the requests before it are answered
        self.heard = False  # whether the client has sent anything yet
        self._header_timer: asyncio.TimerHandle | None = None
        self._age_timer: asyncio.TimerHandle | None = None

    # -- what the client does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header's timer. Of too many connections, close one that is idle, or this one if none is."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._limits.on_refused(TOO_MANY_CONNECTIONS)
            others = (other for other in self.connections if isinstance(other, Connection) and other is not self)
            if not close_longest_idle(others, self.loop.time()):
                transport.abort()
                return
        if self._limits.max_age_s < math.inf:
            spread = random.uniform(1 - AGE_SPREAD, 1 + AGE_SPREAD)  # noqa: S311 - no secret
            self._age_timer = self.loop.call_later(self._limits.max_age_s * spread, self._grow_old)
        self._update_timers()

    def data_received(self, data: bytes) -> None:
        """Parse bytes of a header or a body; throw away those that follow a refusal."""
        self.heard = True
        if self._ending.lingers:
            self._ending.throw_away(len(data))
        if self._stopped_reading():
            return
        if self._unparsed:  # they were on their way when reading was switched off
            self._unparsed += data
            return
        self._unset_keepalive_if_required()
        self.parse(data)
        self._update_timers()

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
        self._update_timers()
        if self._closing:
            self.shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        for timer in (self._header_timer, self._age_timer):
            if timer is not None:
                timer.cancel()
        self._unset_keepalive_if_required()  # uvicorn leaves it running where the client has reset the connection
        super().connection_lost(exc)

    # -- when it closes

    def idle_since(self) -> float | None:
        """Return since when, by the loop's time, the client has had all that it asked for; None while it has not."""
        if self._stopped_reading() or self._answering() or self._header_begun or self._ending.is_unread():
            return None
        if self.timeout_keep_alive_task is not None:
            return self.timeout_keep_alive_task.when() - self.timeout_keep_alive
        if self._header_timer is not None:
            return self._header_timer.when() - self._limits.header_timeout_s
        return None

    def has_unread(self) -> bool:
        """Whether the client has sent something that the event loop has not read yet, or the parser has not."""
        if self._unparsed:
            return True
        socket = self.transport.get_extra_info("socket")
        if socket is None or self.transport.is_closing():
            return False
        poll = select.poll()
        poll.register(socket.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never takes the rest of its last answer."""
        self._ending.close_idle()

    def _grow_old(self) -> None:
        """Close after the next response, which says so: the client's next connection may be to another replica."""
        self._close_after_response = True

    def shutdown(self) -> None:
        """Close once what the client has sent is answered, including a request that lies unread in the socket."""
        self._closing = True
        if self._answering() or self._ending.lingers:
            return  # called again after the last answer
        if self._header_begun or self.has_unread():
            self._update_timers()
        else:
            self._ending.close_idle()

    def _stopped_reading(self) -> bool:
        """Whether nothing more is read: what came was refused, or will be after the answers to requests before it."""
        return self._ending.lingers or self._refusal is not None or self.transport.is_closing()

    # -- late headers, and what is not HTTP

    def _update_timers(self) -> None:
        """Run the header's timer exactly while a header is awaited and the keep-alive timer does not run."""
        if self._stopped_reading() or self._answering() or self.timeout_keep_alive_task is not None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
            return
        seconds = LAST_HEADER_S if self._closing else self._limits.header_timeout_s
        if self._header_timer is not None:
            if not self._closing or self._header_timer.when() <= self.loop.time() + seconds:
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
        if self._header_begun and not self._closing:  # else there is nothing to refuse, or no time to
            self._refuse(HeaderTooSlow(), self._head_so_far())
        else:
            self._ending.close_idle()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; overrides uvicorn's plain text. Requests before it, accepted ones, come first."""
        self._header_begun = False
        error = MalformedRequest("This is not an HTTP request that can be read, or its header is too large.")
        broken = self.cycle if self._answering() and self.cycle.more_body else None
        refuse = partial(self._refuse, error, self._head_so_far() if broken is None else broken.scope)
        if broken is not None and self.pipeline:  # the broken body is of a request that waits behind others
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
        """Return what `_refuse` needs of a scope, from what was parsed of a request that has none yet."""
        method = self.parser.get_method().decode() if self.url else ""  # before a target, it is the last request's
        return {"method": method, "headers": self.headers, "state": {}}
