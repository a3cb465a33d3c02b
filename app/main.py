"""The application factories and the lifespan, nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from app.errors import ServiceError
from app.exception_handlers import answer_with_problem
from app.middleware import RequestContext
from app.routes import health, predict
from app.routes.docs import mount_docs
from app.routes.document import KEY_IS_ASKED_FOR
from app.service import Service


def create_app(service: Service) -> FastAPI:
    """Build the application of the first port."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await service.stop()

    title = "ResNet image classification"
    app = FastAPI(
        title=title,
        version="1",
        lifespan=lifespan,
        openapi_url="/openapi.json" if service.settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    keyed = [KEY_IS_ASKED_FOR] if service.keys.required else []
    app.include_router(predict.router, dependencies=keyed)
    app.include_router(health.router, dependencies=keyed)
    if service.settings.admin_port is None:
        app.include_router(health.probes)
    if service.settings.docs:
        mount_docs(app)
    return _add_common_parts(app, service)


def create_admin_app(service: Service) -> FastAPI:
    """Build the application of the second port: probes and metrics of a service, nothing else."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(health.probes)
    return _add_common_parts(app, service)


def _add_common_parts(app: FastAPI, service: Service) -> FastAPI:
    """Add what both applications have: the service, the middleware and the error handler."""
    app.state.service = service
    app.add_middleware(RequestContext, service=service)
    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_with_problem)
    return app
