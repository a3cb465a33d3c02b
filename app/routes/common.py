"""What several routes need: the service behind the application, and the key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Annotated

from fastapi import Depends, Request

from app.errors import Unauthorized
from app.service import Service


async def get_service(request: Request) -> Service:
    """Return the service that the application factory put into the application's state."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


@contextmanager
def holding_key(request: Request, service: Service) -> Iterator[None]:
    """Let a request pass that carries a key, if the service asks for one, and count it until its end.

    Raises Unauthorized and TooManyRequests.
    """
    keys = service.keys
    if not keys.required:
        yield
        return
    key = keys.find(request.headers.get("authorization", ""))
    if key is None:
        raise Unauthorized
    service.telemetry.key_requests.labels(key.name).inc()
    with keys.hold(key):
        yield


async def require_key(request: Request, service: ServiceDep) -> AsyncIterator[None]:
    """`holding_key` as a dependency of a route."""
    with holding_key(request, service):
        yield


KeyDep = Depends(require_key)
