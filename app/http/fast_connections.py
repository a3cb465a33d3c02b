"""The fast path: a connection that answers small requests itself, without the application.

    bytes -> cached header, whole body? -> answered, or refused in an overload
                          , a part of it? -> held for a moment, in which the rest may come
          -> parser -> small and whole? -> answered, or refused; its header is cached from then on
                    -> the application, as any other request: connections.py

What is answered and what a header means is the same with the cache (cached_headers.py) and without it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Unpack, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import ClientGone, NotReady, ServiceError
from app.http.cached_headers import CachedHeader, RequestHead
from app.http.connection_limits import ConnectionLimits
from app.http.connections import Connection
from app.http.parsing import UvicornOptions
from app.http.problems import Headers

if TYPE_CHECKING:  # what speaks HTTP knows routes by name only
    from app.routes.fast_predict import FastPredict

# Many clients send a header and its body one after the other; what takes longer than this goes to the parser.
BODY_SOON_S = 0.01

# Longer headers are not cached. Most have a tenth of it.
MAX_CACHED_BYTES = 4096


class UnparsedRequest(RequestResponseCycle):
    """What a connection keeps of a request that was here whole and was not parsed: how far its answer is.

    uvicorn's connection keeps a scope and messages in the same place.
    """

    message_event = asyncio.Event()  # one for all: nobody awaits messages of what is here whole
    body = b""  # type: ignore[assignment]  # the fast path has it; one for all, so nothing may be added to it
    more_body = False
    waiting_for_100_continue = False
    disconnected = response_started = response_complete = False
    keep_alive = True

    def __init__(self, on_response: Callable[[], None]) -> None:
        self.on_response = on_response


class FastConnection(Connection):
    """A connection whose small requests to one path are answered by `fast_path`.

    Between two pieces of data a connection is in one of four states.

    - Between two requests: what comes next may have the cached header.
    - The cached header is held: `_held` has all that came of the request, of which the parser knows nothing.
    - A header was parsed whose body comes now: `_header_piece` is that header, to be cached once the body is here.
    - Anything else: until the parser is between two requests again, all goes there.
    """

    def __init__(self, *, fast_path: FastPredict, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(limits=limits, **uvicorns)
        self._fast_path = fast_path
        self._overload = fast_path.overload
        self._cached = fast_path.cached_header
        self._idle_since = 0.0  # a time of the loop: the keep-alive timer may have begun before
        self._held = b""
        self._held_since = 0.0
        self._held_timer: asyncio.TimerHandle | None = None
        self._parser_is_idle = True  # it has ended a request and seen no byte of the next
        self._header_piece = b""  # the first piece of data of what the parser reads, if that is a header without a body
        self._messages_begun = 0  # by the parser, since the first piece
        self._began = 0.0  # when the active request did, if the parser has read its header; a time.monotonic()
        self._last_head: RequestHead | None = None  # of a small request that the last piece of data ended
        self._turned_away = False  # whether the overload refused a request in it
        self._awaits_body = False
        self._body_timer: asyncio.TimerHandle | None = None

    # -- what the client does

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the header's timer. A new connection suspends the event loop's rests in an overload."""
        self._overload.stay_awake()
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Answer a small request with the cached header at once; parse anything else."""
        self.heard = True
        held = self._held and self._take_held()
        data = held + data
        if self._cached is not None and self._may_begin() and (found := self._cached.match(data)) is not None:
            head, length, body = found
            if len(body) == length <= self._fast_path.max_body_bytes:
                self._begin_cached(head, body, self._held_since if held else time.monotonic())
                return
            if len(body) < length <= self._fast_path.max_body_bytes and not held:
                self._hold(data)
                return
        self._parse(data)

    def shutdown(self) -> None:
        """Close once what the client has sent is answered."""
        self._give_up_held()
        super().shutdown()

    def give_up_body(self) -> None:
        """Refuse the request whose body is awaited, if there is one: a drain's time is over."""
        self._give_up_held()
        if self._awaits_body:
            self._body_late(NotReady())

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request whose body was awaited, by the parser or behind a cached header."""
        held = self._take_held()
        found = self._cached.match(held) if held and self._cached is not None else None
        if found is not None:
            self._active = UnparsedRequest(self.on_response_complete)
        super().connection_lost(exc)
        if found is not None:
            self._fast_path.refuse(self, found[0], ClientGone(), self._held_since)
        elif self._awaits_body:
            self._end_of_wait()
            self._fast_path.refuse(self, self._head(), ClientGone(), self._began)

    def idle_since(self) -> float | None:
        """Return since when, by the loop's time, the client has had all that it asked for; None while it has not."""
        since = super().idle_since()
        return None if since is None or self._held else max(since, self._idle_since)

    def _may_begin(self) -> bool:
        """Whether the next byte is a request's first one, and that request may be answered at once."""
        return (
            self._parser_is_idle
            and not self._unparsed
            and not self._answering()
            and not (self._closing or self._close_after_response)
            and not self.flow.write_paused
            and not self._stopped_reading()
        )

    # -- the cached header

    def _begin_cached(self, head: RequestHead, body: bytes, began: float) -> None:
        """Answer or refuse a request that is here whole, and that is not parsed."""
        self._overhead_bytes = 0
        error = self._overload.refusal_of_all()
        if error is not None:
            self.transport.write(self._overload.immediate_refusal(head, error))
            self._idle_since = self.loop.time()
            if self.timeout_keep_alive_task is None:  # else its handler will see that it is too early
                self.on_response_complete()
            return
        self._unset_keepalive_if_required()
        self.cycle = self._active = UnparsedRequest(self.on_response_complete)
        if self._header_timer is not None:  # of a new connection
            self._update_timers()
        self._fast_path.begin(self, head, body, began)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, unless it has been idle only since a request was turned away."""
        left_s = self._idle_since + self.timeout_keep_alive - self.loop.time()
        if left_s > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)
        else:
            super().timeout_keep_alive_handler()

    def _hold(self, data: bytes) -> None:
        """Keep the cached header, with or without a part of its body, for BODY_SOON_S, in which the rest may come."""
        self._unset_keepalive_if_required()
        self._held, self._held_since = data, time.monotonic()
        self._held_timer = self.loop.call_later(BODY_SOON_S, self._give_up_held)

    def _take_held(self) -> bytes:
        """Return the bytes that are held, and hold them no longer."""
        if self._held_timer is not None:
            self._held_timer.cancel()
            self._held_timer = None
        held, self._held = self._held, b""
        return held

    def _give_up_held(self) -> None:
        """Parse what is held: from then on its body has a time limit, and a drain waits for it."""
        if held := self._take_held():
            self._parse(held)

    # -- a header that is not cached

    def _parse(self, data: bytes) -> None:
        """Parse bytes, and cache the header if they end a small request and hold nothing else."""
        if self._may_begin():
            self._header_piece, self._messages_begun = b"", 0
            whole = data
        else:
            whole = self._header_piece + data if self._header_piece else b""
        self._last_head, self._turned_away = None, False
        super().data_received(data)
        if not self._turned_away:
            self._overload.stay_awake()
        if whole and self._last_head is not None and self._messages_begun == 1 and self._parser_is_idle:
            self._cache(whole, self._last_head)
        self._header_piece = whole if self._awaits_body and whole is data and len(data) <= MAX_CACHED_BYTES else b""

    def _cache(self, request: bytes, head: RequestHead) -> None:
        """Cache a request's header, unless it is long or has asked for the connection's end."""
        size = request.find(b"\r\n\r\n")
        if size > MAX_CACHED_BYTES or self._active is None or not self._active.keep_alive:
            return
        self._cached = CachedHeader.of(request, head)
        if self._cached is not None and not head.key:  # comparing keys must take the same time for all of them
            self._fast_path.cached_header = self._cached

    def on_message_begin(self) -> None:
        """Count a request that begins."""
        self._messages_begun += 1
        self._parser_is_idle = False
        super().on_message_begin()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Begin to answer a request: a small one here, once its body has come, any other one in the application."""
        if not self._is_small(cycle):
            super()._start_asgi_task(cycle, app)
            return
        self._active = cycle
        self._began = time.monotonic()
        if cycle.more_body:
            self._awaits_body = True
        else:  # Its body came before the last answer. Not called here: thousands may wait, each within the last.
            self.loop.call_soon(self._begin_parsed)

    def _is_small(self, cycle: RequestResponseCycle) -> bool:
        """Whether a request's header announces what the fast path takes."""
        scope = cycle.scope
        if scope["method"] != "POST" or scope["path"] != self._fast_path.path:
            return False
        if cycle.waiting_for_100_continue or self.flow.write_paused:
            return False
        for name, value in cast(Headers, scope["headers"]):
            if name == b"content-length":
                return len(value) < 9 and int(value) <= self._fast_path.max_body_bytes
        return False

    def on_message_complete(self) -> None:
        """End a request, and begin to answer it."""
        self._parser_is_idle = True
        super().on_message_complete()
        if self._awaits_body and not self.cycle.more_body and self.cycle is self._active:
            self._begin_parsed()

    def _begin_parsed(self) -> None:
        """Answer or refuse the active request, whose body has been parsed to its end."""
        cycle = self._active
        assert cycle is not None
        self._end_of_wait()
        head = self._last_head = self._head()
        error = self._overload.refusal_of_all()
        if error is None:
            body, cycle.body = bytes(cycle.body), bytearray()  # which would be held twice until the answer
            self._fast_path.begin(self, head, body, self._began)
            return
        self._turned_away = True
        if cycle.keep_alive and not (self._closing or self._close_after_response or cycle.disconnected):
            self.transport.write(self._overload.immediate_refusal(head, error))
            self._end_answer(cycle)
        else:
            self._fast_path.refuse(self, head, error, self._began)

    def _head(self) -> RequestHead:
        """Return what the header of the active request says."""
        assert self._active is not None
        scope = self._active.scope
        return RequestHead(cast(Headers, scope["headers"]), scope["query_string"])

    # -- times

    def _update_timers(self) -> None:
        """Run the timer of a small body while one is awaited, or else the header's."""
        if self._awaits_body and self._body_timer is None:
            deadline = self._fast_path.body_deadline(self._head())
            self._body_timer = self.loop.call_later(deadline.timeout_s, self._body_late, deadline.error)
        super()._update_timers()

    def _body_late(self, error: ServiceError) -> None:
        self._end_of_wait()
        self._fast_path.give_up(self, self._head(), error, self._began)

    def _end_of_wait(self) -> None:
        """Stop waiting for the active request's body."""
        self._awaits_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
