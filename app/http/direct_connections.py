"""A connection that answers small requests itself.

    bytes -> parser -> small and whole? -> answered
                    -> the application

What it does not take goes the way of all requests: connections.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Unpack, cast

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import ClientGone, ServiceError
from app.http.connection_limits import ConnectionLimits
from app.http.connections import Connection
from app.http.direct_interface import DirectHandler
from app.http.heads import Head
from app.http.parsing import UvicornOptions
from app.http.problems import Headers


class DirectConnection(Connection):
    """A connection whose small requests to one path are answered by `direct`."""

    def __init__(self, *, direct: DirectHandler, limits: ConnectionLimits, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(limits=limits, **uvicorns)
        self._direct = direct
        self.began = 0.0  # when the active request did, a time.monotonic()
        self._awaits_body = False
        self._body_timer: asyncio.TimerHandle | None = None

    def on_message_complete(self) -> None:
        """End a request, and begin to answer it."""
        super().on_message_complete()
        if self._awaits_body and not self.cycle.more_body and self.cycle is self._active:
            self._begin_direct()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        super().connection_lost(exc)
        if self._awaits_body:
            self._end_of_wait()
            self._direct.refuse(self, self._head(), ClientGone())

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a part of a request that takes longer; it is cancelled when a drain's time is over."""
        task = self.loop.create_task(work)
        task.add_done_callback(self.tasks.discard)
        self.tasks.add(task)

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
        """Whether a request's header announces what `DirectHandler` takes."""
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
        """Begin to answer the active request, which is here whole."""
        self._end_of_wait()
        self._answer_direct(self._head())

    def _answer_direct(self, head: Head) -> None:
        assert self._active is not None
        error = self._direct.refusal_of_all()
        if error is not None:
            self._refuse_directly(self._active, head, error)
            return
        body, self._active.body = bytes(self._active.body), bytearray()  # which an idle connection would keep
        self._direct.begin(self, head, body)

    def _refuse_directly(self, cycle: RequestResponseCycle, head: Head, error: ServiceError) -> None:
        """Refuse a request for what all are refused for: in an overload hardly anything else is done."""
        if cycle.keep_alive and not self._last and not cycle.disconnected:
            self.transport.write(self._direct.immediate_refusal(head, error))
            self._end_answer(cycle)
        else:
            self._direct.refuse(self, head, error)

    def _head(self) -> Head:
        """Return the header of the active request."""
        assert self._active is not None
        scope = self._active.scope
        return Head(cast(Headers, scope["headers"]), scope["query_string"])

    def _end_of_wait(self) -> None:
        """Await the active request's body no longer."""
        self._awaits_body = False
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _watch(self) -> None:
        """Let the body's time run while a small one is awaited, and else the header's."""
        if self._awaits_body and self._body_timer is None:
            seconds, error = self._direct.body_time(self._head())
            self._body_timer = self.loop.call_later(seconds, self._body_late, error)
        super()._watch()

    def _body_late(self, error: ServiceError) -> None:
        self._end_of_wait()
        self._direct.refuse(self, self._head(), error, body_is_here=False)
