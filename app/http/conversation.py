"""What a connection and those who answer on it are to each other, so that neither has to know the other."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Protocol

from app.errors import ServiceError
from app.http.heads import Head, KnownHead
from app.http.problems import Headers

# The ASGI extension by which a request is told that its client has left; its "tell" is `Connection.when_gone`.
WHEN_GONE = "resnet.when_gone"

# The ASGI extension for what is whole: its "respond", "body_is_here" and "awaits_leave" are the methods
# of Connection.
WHOLE = "resnet.whole"


class Conversation(Protocol):
    """What a connection lets a request do, and when the request began: a time.monotonic()."""

    began: float

    def send_answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer, whole, unless the client has left."""

    def when_gone(self, tell: Callable[[], None] | None) -> None:
        """Call `tell` as soon as the client has left; None forgets who was to be told."""

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run a coroutine; it is cancelled when a drain's time is over."""


class Direct(Protocol):
    """What answers requests to `path` whose bodies hold at most `max_body_bytes`, without the application.

    `known` is the header without a key that a connection came to know last: what a new one begins with.
    """

    path: str
    max_body_bytes: int
    known: KnownHead | None

    def begin(self, conversation: Conversation, head: Head, body: bytes) -> None:
        """Answer a request, now or later."""

    def refuse(self, conversation: Conversation, head: Head, error: ServiceError) -> None:
        """Answer a request whose body did not come."""

    def full(self) -> ServiceError | None:
        """Return why every request is refused now, if that is so."""

    def turn_away(self, head: Head, error: ServiceError) -> bytes:
        """Return the whole answer to a request that is refused for what `full` returned."""

    def stay_awake(self) -> None:
        """Be quick for a moment: something else than a request with a known header has come."""
