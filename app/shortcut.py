"""POST requests of one path go straight to their handler, past the framework; everything else takes its usual way.

FastAPI documents that route, as all others, and would answer it alike. But its stack of middleware, routing, solving
dependencies and the context managers around them cost more than all that the service itself does for a small picture.
`make bench-peers` measures the whole, with an engine that answers at once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.errors import ServiceError

Answer = Callable[[Request], Awaitable[Response]]
OnError = Callable[[Request, Exception], Awaitable[Response]]


class Application(FastAPI):
    """FastAPI, but for POST requests of `short_path`: `short_app` answers these."""

    short_path: str | None = None
    short_app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request the one way or the other."""
        if scope["type"] == "http" and scope["path"] == self.short_path and scope["method"] == "POST":
            scope["app"] = self
            await self.short_app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Handler:
    """An ASGI application of one function: `answer` takes the requests, `on_error` what it raises for a client."""

    def __init__(self, path: str, answer: Answer, on_error: OnError) -> None:
        self.path = path
        self.answer = answer
        self.on_error = on_error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        scope["state"]["route"] = self.path  # the metrics' label, which routing would have found
        request = Request(scope, receive)
        try:
            response = await self.answer(request)
        except ServiceError as error:
            response = await self.on_error(request, error)
        await response(scope, receive, send)
