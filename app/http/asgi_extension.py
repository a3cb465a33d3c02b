"""The ASGI extension by which an application calls the connection that its request came on.

ASGI itself has messages only: that a client has left is one that a task has to wait for, and an answer is two of them,
which are two writes to the network.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.types import Scope, Send

from app.errors import ServiceError
from app.http.problems import Headers

# Its name in a scope's extensions, where the connection itself stands.
CONNECTION = "resnet.connection"


class ClientConnection(Protocol):
    """What an application may ask of a connection, for the request that it answers.

    `refused_with` is the error that the connection has answered this request with, whatever the application answers.
    """

    refused_with: ServiceError | None

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Call `callback` as soon as the client has left, at once if it has; None unregisters the callback."""

    def body_is_here(self) -> bool:
        """Whether the request has come to its end, so that nothing of it has to be waited for."""

    def awaits_100_continue(self) -> bool:
        """Whether the client sent `Expect: 100-continue` and has not been sent 100 Continue."""

    def require_room(self, count: int) -> None:
        """Raise QueueFull if an answer of `count` bytes is large, and clients leave too much unread."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer at once; to HEAD without a body, whatever length is among the headers.

        Raises QueueFull for a large one, of which nothing is sent, while clients leave too much unread.
        """

    def headers_of_pieces(self, headers: Headers) -> Headers:
        """Return the headers of an answer that ASGI's messages will send, which say whether it is the last one."""


class OtherServer:
    """Stands in for the connection under another server, of which only ASGI's messages are known."""

    refused_with = None

    def __init__(self, send: Send) -> None:
        self._send = send

    def when_gone(self, callback: Callable[[], None] | None) -> None:
        """Never call it."""

    def body_is_here(self) -> bool:
        """False: it may be, but nothing says so."""
        return False

    def awaits_100_continue(self) -> bool:
        """False: the server sends 100 Continue by itself."""
        return False

    def require_room(self, count: int) -> None:
        """Raise nothing: what clients leave unread, the server knows."""

    async def respond(self, status: int, headers: Headers, body: bytes) -> None:
        """Send the answer by two messages."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def headers_of_pieces(self, headers: Headers) -> Headers:
        """Return the same: the server decides by itself."""
        return headers


def connection_of(scope: Scope, send: Send) -> ClientConnection:
    """Return the connection that a request came on. Under another server, put a stand-in for it into the scope."""
    extensions = scope.setdefault("extensions", {})
    if CONNECTION not in extensions:
        extensions[CONNECTION] = OtherServer(send)
    connection: ClientConnection = extensions[CONNECTION]
    return connection
