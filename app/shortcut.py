"""POST requests of one path go straight to their handler, past the framework; everything else takes its usual way.

FastAPI documents that route, as all others, and would answer it alike. But routing, solving dependencies and the
stacks of context managers around them cost about as much as all that the service itself does for a small picture.
`make bench-peers` measures the whole, with an engine that answers at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ServiceError

Answer = Callable[[Request], Awaitable[Response]]
OnError = Callable[[Request, Exception], Awaitable[Response]]


class Shortcut:
    """Plain ASGI middleware: `answer` takes the path's POST requests, `on_error` what it raises for a client."""

    def __init__(self, app: ASGIApp, path: str, answer: Answer, on_error: OnError) -> None:
        self.app = app
        self.path = path
        self.answer = answer
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http" or scope["path"] != self.path or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        scope["state"]["route"] = self.path  # the metrics' label, which routing would have found
        request = Request(scope, receive)
        try:
            response = await self.answer(request)
        except ServiceError as error:
            response = await self.on_error(request, error)
        await response(scope, receive, send)
