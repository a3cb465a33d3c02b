"""What several routes need: the service behind the application, and the key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, Request

from app.errors import Unauthorized
from app.service import Service


async def get_service(request: Request) -> Service:
    """Return the service that the application factory put into the application's state."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


def take_key(service: Service, authorization: str) -> Callable[[], None]:
    """Check the key that a request carries, if the service requires one; return what to call at the request's end.

    Raises Unauthorized and TooManyRequests.
    """
    keys = service.keys
    if not keys.required:
        return _nothing
    key = keys.find(authorization)
    if key is None:
        raise Unauthorized
    service.telemetry.key_requests.labels(key.name).inc()
    return keys.take(key)


def _nothing() -> None:
    pass


async def require_key(request: Request, service: ServiceDep) -> AsyncIterator[None]:
    """`take_key` as a dependency of a route."""
    release = take_key(service, request.headers.get("authorization", ""))
    try:
        yield
    finally:
        release()


KeyDep = Depends(require_key)
