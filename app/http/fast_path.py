"""What the fast path is made of besides its connections: who answers there, and what is kept of a request meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from app.errors import ServiceError
from app.http.answering import AnsweringConnection
from app.http.cached_headers import CachedHeader, RequestHead
from app.http.parameters import BodyDeadline


class Overload(Protocol):
    """What refuses requests while there is no room for any."""

    def refusal_of_all(self) -> ServiceError | None:
        """Return the error that every request gets now, or None."""

    def immediate_refusal(self, head: RequestHead, error: ServiceError) -> bytes:
        """Return the whole answer to a request that is refused for what `refusal_of_all` returned."""

    def stay_awake(self) -> None:
        """Do not rest for a moment: something else than a request with a cached header has come."""


class FastPath(Protocol):
    """What answers requests to `path` whose bodies hold at most `max_body_bytes`; it raises nothing.

    `cached_header` is the one without a key that a connection cached last: what a new connection begins with.
    """

    path: str
    max_body_bytes: int
    cached_header: CachedHeader | None

    @property
    def overload(self) -> Overload:
        """What refuses requests in place of this one while there is no room."""

    def body_deadline(self, head: RequestHead) -> BodyDeadline:
        """Return how long a request's body may take."""

    def begin(self, connection: AnsweringConnection, head: RequestHead, body: bytes, began: float) -> None:
        """Answer a request that began at `began`, a time.monotonic(), by `connection.send_answer`, now or later."""

    def refuse(self, connection: AnsweringConnection, head: RequestHead, error: ServiceError, began: float) -> None:
        """Answer a request with an error: its client has gone, or `overload` refuses all of them."""

    def give_up(self, connection: AnsweringConnection, head: RequestHead, error: ServiceError, began: float) -> None:
        """Answer a request whose body did not come in time: with an error, or what its header is refused for."""


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
