"""A connection that answers small requests itself, and in an overload turns them away before it makes anything of them.

What it does not take goes the way of all requests, to the application: app/connections.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Unpack, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.connection_limits import ConnectionLimits
from app.connections import Connection, UvicornOptions
from app.conversation import Direct
from app.errors import BodyTooSlow, ClientGone, ServiceError
from app.problems import Headers


class DirectConnection(Connection):
    """A connection whose small requests to one path are answered by `direct`."""

    def __init__(self, *, direct: Direct, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(limits=limits, **uvicorns)
        self._direct = direct
        self._path = direct.path.encode()
        self._path_with_query = self._path + b"?"
        self.began = 0.0  # when the active request did, a time.monotonic()
        self._awaits_body = False
        self._body_timer: asyncio.TimerHandle | None = None
        self._turned_away: ServiceError | None = None  # the answer to a request whose body is not here to its end
        self._held = b""  # what is here of it

    # -- in an overload

    def _begin_request(self) -> None:
        self._turned_away = self._why_turn_away()
        if self._turned_away is None:
            super()._begin_request()

    def _why_turn_away(self) -> ServiceError | None:
        """Return why a request is refused of which nothing but the header is known, if it is so plain a one."""
        if self.url != self._path and not self.url.startswith(self._path_with_query):
            return None
        if self.parser.get_method() != b"POST" or self.expect_100_continue:
            return None
        if self._last or not self.parser.should_keep_alive() or self.flow.write_paused or self._answering():
            return None
        return self._direct.full() if self._is_small(self.headers) else None

    def _feed(self, data: bytes) -> None:
        """Let the parser read. A body that has not come to its end by then is waited for as any other is."""
        super()._feed(data)
        if self._turned_away is not None and not self._refused():
            self._turned_away, held, self._held = None, self._held, b""
            super()._begin_request()
            if held:
                super().on_body(held)

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        if self._turned_away is None:
            super().on_body(body)
        else:
            self._held += body

    # -- small bodies

    def on_message_complete(self) -> None:
        """End a request, and begin to answer it."""
        if self._turned_away is not None:
            self._came_of_it = True
            error, self._turned_away, self._held = self._turned_away, None, b""
            self.transport.write(self._direct.turn_away(self.headers, error))
            self.on_response_complete()
            return
        super().on_message_complete()
        if self._awaits_body and not self.cycle.more_body and self.cycle is self._active:
            self._begin_direct()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        super().connection_lost(exc)
        if self._awaits_body:
            self._refuse_direct(ClientGone())

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
        return self._is_small(cast(Headers, scope["headers"]))

    def _is_small(self, headers: Headers) -> bool:
        for name, value in headers:
            if name == b"content-length":
                return len(value) < 9 and int(value) <= self._direct.max_body_bytes
        return False

    def _begin_direct(self) -> None:
        cycle = self._awaited()
        headers = cast(Headers, cycle.scope["headers"])
        self._direct.begin(self, headers, cycle.scope["query_string"], bytes(cycle.body))

    def _refuse_direct(self, error: ServiceError) -> None:
        self._direct.refuse(self, cast(Headers, self._awaited().scope["headers"]), error)

    def _awaited(self) -> RequestResponseCycle:
        """Return the active request, whose body is no longer awaited."""
        self._awaits_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None
        assert self._active is not None
        return self._active

    def _watch(self) -> None:
        """Let the body's time run while a small one is awaited, and else the header's."""
        if self._awaits_body and self._body_timer is None:
            self._body_timer = self.loop.call_later(self._limits.body_timeout_s, self._body_late)
        super()._watch()

    def _body_late(self) -> None:
        self._refuse_direct(BodyTooSlow())

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a part of a request that takes longer; it is cancelled when a drain's time is over."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)
