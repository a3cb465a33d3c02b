"""What several routes need: the service behind the application, and the key."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import Depends, Request

from app.errors import Unauthorized
from app.service import Service


async def get_service(request: Request) -> Service:
    """Return the service that the application factory put into the application's state."""
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(get_service)]


async def require_key(request: Request, service: ServiceDep) -> None:
    """Let a request pass that carries the key, if the service asks for one. Raises Unauthorized."""
    key = service.settings.api_key
    if key is None:
        return
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    matches = secrets.compare_digest(given.strip().encode(), key.get_secret_value().encode())
    if scheme.lower() != "bearer" or not matches:
        raise Unauthorized


KeyDep = Depends(require_key)
