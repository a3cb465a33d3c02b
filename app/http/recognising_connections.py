"""A connection that knows a small request's header again, and answers what has it without the parser.

    bytes -> known header, whole body? -> answered, or turned away in an overload
                         , a part of it? -> held for a moment, in which the rest may come
          -> parser, which takes it for one small request? -> its header is known from then on

What is answered and what a header means is the same either way: direct_connections.py, heads.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Unpack, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import ServiceError
from app.http.connection_limits import ConnectionLimits
from app.http.direct_connections import DirectConnection
from app.http.direct_interface import DirectHandler
from app.http.heads import Head, KnownHead
from app.http.parsing import UvicornOptions

# Many clients send a header and its body one after the other; what takes longer than this goes to the parser.
BODY_SOON_S = 0.01

# Of a header that may be known when it comes again. Most are a tenth of it.
MAX_KNOWN_BYTES = 4096


class RecognisingConnection(DirectConnection):
    """A direct connection that recognises headers. Between two pieces of data it is in one of four states.

    - Between two requests: what comes next may have a known header.
    - A known header is held: `_held` has all that came of the request, of which the parser knows nothing.
    - A header was parsed whose body comes now: `_begun` is that header, which may be known once the body is here.
    - Anything else: until the parser is between two requests again, all goes there.
    """

    def __init__(self, *, direct: DirectHandler, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(direct=direct, limits=limits, **uvicorns)
        self._known = direct.known
        self._idle_since = 0.0  # a time of the loop: the keep-alive timer may have begun before
        self._parser_is_idle = True  # it has ended a request and seen no byte of the next
        self._begun = b""  # the first piece of data of what the parser reads, if that is a header without a body
        self._messages = 0  # that the parser has begun since that piece
        self._last_direct: Head | None = None  # of the last piece of data
        self._turned_away = False  # whether a request in it was refused at once
        self._held = b""
        self._held_since = 0.0
        self._held_timer: asyncio.TimerHandle | None = None

    # -- what the client does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first header. Where clients come in crowds, nobody rests until all are let in."""
        self._direct.stay_awake()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take bytes: a small request with a known header at once, others by way of the parser."""
        self.heard = True
        held = self._held and self._take_held()
        data = held + data
        if self._known is not None and self._may_begin() and (found := self._known.match(data)) is not None:
            head, length, body = found
            if len(body) == length <= self._direct.max_body_bytes:
                self._begin_known(head, body, self._held_since if held else time.monotonic())
                return
            if len(body) < length <= self._direct.max_body_bytes and not held:
                self._hold(data)
                return
        self._parse(data)

    def shutdown(self) -> None:
        """Close once what the client has sent is answered."""
        self._give_up_held()
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._take_held()
        super().connection_lost(exc)

    def _may_begin(self) -> bool:
        """Whether the next byte is a request's first one, and that request may be answered at once."""
        return (
            self._parser_is_idle
            and not self._unparsed
            and not self._answering()
            and not self._last
            and not self.flow.write_paused
            and not self._stopped_reading()
        )

    # -- a known header

    def _begin_known(self, head: Head, body: bytes, began: float) -> None:
        self._overhead_bytes = 0
        error = self._direct.refusal_of_all()
        if error is not None:
            self.transport.write(self._direct.immediate_refusal(head, error))
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:  # else it will see that it is too early
                self.on_response_complete()
            return
        self._unset_keepalive_if_required()
        self.cycle = self._active = WholeRequest(self.on_response_complete)
        self.began = began
        if self._header_timer is not None:  # of a new connection
            self._watch()
        self._direct.begin(self, head, body)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless it has been idle only since a request was turned away."""
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _hold(self, data: bytes) -> None:
        """Keep a known header, with or without a part of its body, for the moment in which the rest may come."""
        self._unset_keepalive_if_required()
        self._held, self._held_since = data, time.monotonic()
        self._held_timer = self.loop.call_later(BODY_SOON_S, self._give_up_held)

    def _take_held(self) -> bytes:
        """Return what is held, and hold it no longer."""
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
        held, self._held = self._held, b""
        return held

    def _give_up_held(self) -> None:
        """Let the parser have what is held: the times of bodies run from there, and a drain waits for them."""
        if held := self._take_held():
            self._parse(held)

    # -- a header that is not known yet

    def _parse(self, data: bytes) -> None:
        """Let the parser have bytes, and know the header from now on if they end a small request, the only one."""
        if self._may_begin():
            self._begun, self._messages = b"", 0
            whole = data
        else:
            whole = self._begun + data if self._begun else b""
        self._last_direct, self._turned_away = None, False
        super().data_received(data)
        if not self._turned_away:
            self._direct.stay_awake()
        if whole and self._last_direct is not None and self._messages == 1 and self._parser_is_idle:
            self._get_to_know(whole, self._last_direct)
        self._begun = whole if self._awaits_body and whole is data and len(data) <= MAX_KNOWN_BYTES else b""

    def _get_to_know(self, request: bytes, head: Head) -> None:
        """Know a request's header from now on, unless it is long or has asked for the connection's end."""
        size = request.find(b"\r\n\r\n")
        if size > MAX_KNOWN_BYTES or self._active is None or not self._active.keep_alive:
            return
        self._known = KnownHead.of(request, head)
        if self._known is not None and not head.key:  # to compare keys must take the same time for all of them
            self._direct.known = self._known

    def on_message_begin(self) -> None:
        """Take note of a request's first byte."""
        self._messages += 1
        self._parser_is_idle = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """Take note of a request's last byte."""
        self._parser_is_idle = True
        super().on_message_complete()

    def _refuse_directly(self, cycle: RequestResponseCycle, head: Head, error: ServiceError) -> None:
        """Take note of a request that is refused for what all are refused for."""
        self._turned_away = True
        super()._refuse_directly(cycle, head, error)

    def _answer_direct(self, head: Head) -> None:
        """Take note of the header of a small request that is here whole."""
        self._last_direct = head
        super()._answer_direct(head)


class _Nobody:
    """Stands for the event that tells of messages: nobody awaits any of a request that is here whole."""

    def set(self) -> None:
        """Wake nobody."""


class WholeRequest(RequestResponseCycle):
    """What a connection keeps of a request that was here whole: how far its answer is."""

    message_event = cast(asyncio.Event, _Nobody())
    more_body = False
    waiting_for_100_continue = False
    disconnected = response_started = response_complete = False
    keep_alive = True

    def __init__(self, on_response: Callable[[], None]) -> None:
        self.on_response = on_response
