"""What a connection and the handler that answers on it are to each other, so that neither has to know the other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol

from app.errors import ServiceError
from app.http.heads import Head, KnownHead
from app.http.problems import Headers

# The ASGI extension by which a request is told that its client has left; its "tell" is `Connection.when_gone`.
WHEN_GONE = "resnet.when_gone"

# The ASGI extension for what is whole: its "respond", "body_is_here" and "awaits_100_continue" are the methods
# of Connection.
WHOLE = "resnet.whole"


class ResponseChannel(Protocol):
    """What a connection lets the handler of one request do. `began` is when it began, a time.monotonic()."""

    began: float

    def send_answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer, whole, unless the client has left."""

    def when_gone(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` as soon as the client has left; None forgets who was to be told."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine; it is cancelled when a drain's time is over."""


class DirectHandler(Protocol):
    """What answers requests to `path` whose bodies hold at most `max_body_bytes`, without the application.

    `known` is the header without a key that a connection came to know last: what a new one begins with.
    """

    path: str
    max_body_bytes: int
    known: KnownHead | None

    def begin(self, channel: ResponseChannel, head: Head, body: bytes) -> None:
        """Answer a request, now or later."""

    def body_time(self, head: Head) -> tuple[float, ServiceError]:
        """Return for how many seconds a body may come, and what the answer is if it does not."""

    def refuse(self, channel: ResponseChannel, head: Head, error: ServiceError, *, body_is_here: bool = True) -> None:
        """Answer a request with an error: its body did not come, or `refusal_of_all` refuses all of them."""

    def refusal_of_all(self) -> ServiceError | None:
        """Return the error that every request gets now, or None."""

    def immediate_refusal(self, head: Head, error: ServiceError) -> bytes:
        """Return the whole answer to a request that is refused for what `refusal_of_all` returned."""

    def stay_awake(self) -> None:
        """Be quick for a moment: something else than a request with a known header has come."""
