"""A connection that answers small requests itself, and knows a header again that it has had before.

    bytes -> known header, small body? -> answered, or turned away in an overload
          -> parser -> small and whole? -> answered, and its header known from then on
                    -> the application

What it does not take goes the way of all requests: connections.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Unpack, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import BodyTooSlow, ClientGone
from app.http.connection_limits import ConnectionLimits
from app.http.connections import Connection
from app.http.conversation import Direct
from app.http.heads import Head, KnownHead
from app.http.parsing import UvicornOptions
from app.http.problems import Headers

# Many clients send a header and its body one after the other; what takes longer than this goes to the parser.
BODY_SOON_S = 0.01

# Of a header that may be known when it comes again. Most are a tenth of it.
MAX_KNOWN_BYTES = 4096


class DirectConnection(Connection):
    """A connection whose small requests to one path are answered by `direct`."""

    def __init__(self, *, direct: Direct, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(limits=limits, **uvicorns)
        self._direct = direct
        self.began = 0.0  # when the active request did, a time.monotonic()
        self._awaits_body = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._known = direct.known
        self._idle_since = 0.0  # a time of the loop: the keep-alive timer may have begun before
        self._begun = b""  # the first piece of data of what the parser reads, if that is a header without a body
        self._messages = 0  # that the parser has begun since that piece
        self._parser_is_between = True  # two messages, of the second of which it has seen nothing
        self._last_direct: Head | None = None  # of the last piece of data
        self._held = b""  # a known header whose body is awaited for a moment, and unknown to the parser
        self._held_since = 0.0
        self._held_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first header. Where clients come in crowds, nobody rests until all are let in."""
        self._direct.stay_awake()
        super().connection_made(transport)

    # -- headers that are known

    def data_received(self, data: bytes) -> None:
        """Take bytes: a small request with a known header at once, others by way of the parser."""
        self.heard = True
        held = self._held and self._take_held()
        data = held + data
        if self._known is not None and self._may_begin() and (found := self._known.split(data)) is not None:
            length, body = found
            if len(body) == length <= self._direct.max_body_bytes:
                self._begin_known(self._known.head, body, self._held_since if held else time.monotonic())
                return
            if len(body) < length <= self._direct.max_body_bytes and not held:
                self._hold(data)
                return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Let the parser have bytes, and know the header from now on if they end a small request, the only one."""
        self._direct.stay_awake()
        if self._may_begin():
            self._begun, self._messages = b"", 0
            whole = data
        else:
            whole = self._begun + data if self._begun else b""
        self._last_direct = None
        super().data_received(data)
        head = self._last_direct
        size = len(whole) - (0 if head is None else int(head.fields.get(b"content-length", 0)))
        if (
            head is not None
            and 0 < size <= MAX_KNOWN_BYTES
            and self._messages == 1
            and self._parser_is_between
            and self._keeps_open()
        ):
            self._known = KnownHead.of(whole, head)
            if self._known is not None and not head.key:  # to compare keys must take the same time for all of them
                self._direct.known = self._known
        self._begun = whole if self._awaits_body and whole is data and len(data) <= MAX_KNOWN_BYTES else b""

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

    def shutdown(self) -> None:
        """Close once what the client has sent is answered."""
        self._give_up_held()
        super().shutdown()

    def _may_begin(self) -> bool:
        """Whether the next byte is a request's first one, and that request may be answered at once."""
        return (
            self._parser_is_between
            and not self._unparsed
            and not self._answering()
            and not self._last
            and not self.flow.write_paused
            and not self._refused()
        )

    def _keeps_open(self) -> bool:
        """Whether nothing in the last header has asked for the connection's end."""
        return self._active is not None and self._active.keep_alive

    def _begin_known(self, head: Head, body: bytes, began: float) -> None:
        self._overhead_bytes = 0
        error = self._direct.full()
        if error is not None:
            self.transport.write(self._direct.turn_away(head, error))
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

    # -- small bodies

    def on_message_begin(self) -> None:
        """Take note of a request's first byte."""
        self._messages += 1
        self._parser_is_between = False
        super().on_message_begin()

    def on_message_complete(self) -> None:
        """End a request, and begin to answer it."""
        self._parser_is_between = True
        super().on_message_complete()
        if self._awaits_body and not self.cycle.more_body and self.cycle is self._active:
            self._begin_direct()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._take_held()
        super().connection_lost(exc)
        if self._awaits_body:
            self._direct.refuse(self, self._awaited(), ClientGone())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin to answer a request: a small one here, as soon as its body is, any other one in the application."""
        if not self._is_direct(cycle):
            super()._start_asgi_task(cycle, app)
            return
        self._active = cycle
        self.began = time.monotonic()
        if cycle.more_body:
            self._awaits_body = True
        else:  # It came while the request before it was answered. Not here: thousands may wait, one within the other.
            self.loop.call_soon(self._begin_direct)

    def _is_direct(self, cycle: RequestResponseCycle) -> bool:
        """Whether a request's header announces what `Direct` takes."""
        scope = cycle.scope
        if scope["method"] != "POST" or scope["path"] != self._direct.path:
            return False
        if cycle.waiting_for_100_continue or self.flow.write_paused:
            return False
        for name, value in cast(Headers, scope["headers"]):
            if name == b"content-length":
                return len(value) < 9 and int(value) <= self._direct.max_body_bytes
        return False

    def _begin_direct(self) -> None:
        head = self._last_direct = self._awaited()
        error = self._direct.full()
        if error is not None:
            self._direct.refuse(self, head, error)
            return
        assert self._active is not None
        body, self._active.body = bytes(self._active.body), bytearray()  # which an idle connection would keep
        self._direct.begin(self, head, body)

    def _awaited(self) -> Head:
        """Return the header of the active request, whose body is no longer awaited."""
        self._awaits_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        assert self._active is not None
        scope = self._active.scope
        return Head(cast(Headers, scope["headers"]), scope["query_string"])

    def _watch(self) -> None:
        """Let the body's time run while a small one is awaited, and else the header's."""
        if self._awaits_body and self._body_timer is None:
            self._body_timer = self.loop.call_later(self._limits.body_timeout_s, self._body_late)
        super()._watch()

    def _body_late(self) -> None:
        self._direct.refuse(self, self._awaited(), BodyTooSlow())

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a part of a request that takes longer; it is cancelled when a drain's time is over."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)


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
