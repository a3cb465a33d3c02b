"""The application factories and the lifespan, nothing else."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from app.errors import BadParameter, ClientGone, MalformedRequest, MethodNotAllowed, NotFound, ServiceError
from app.middleware import RequestContext, problem_response
from app.routes import health, predict
from app.routes.docs import mount_docs
from app.routes.document import KEY_IS_ASKED_FOR
from app.service import Service

log = logging.getLogger(__name__)


def app_of(service: Service) -> FastAPI:
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
    return _furnish(app, service)


def create_admin_app(service: Service) -> FastAPI:
    """Build the application of the second port: probes and metrics of a service, nothing else."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(health.probes)
    return _furnish(app, service)


def _furnish(app: FastAPI, service: Service) -> FastAPI:
    """Add what both applications have: the service, and what surrounds each request."""
    app.state.service = service
    app.add_middleware(RequestContext, service=service)
    for kind in (ServiceError, HTTPException, RequestValidationError):
        app.add_exception_handler(kind, answer_with_problem)
    return app


async def answer_with_problem(request: Request, error: Exception) -> Response:
    """Turn whatever was raised for a client into its problem; the one handler."""
    problem = _as_service_error(error)
    telemetry = request.app.state.service.telemetry
    request_id = request.state.request_id
    seen = {"request_id": request_id, "status": problem.status}
    if problem is not error and problem.status == ServiceError.status:  # what nobody here raises
        log.error("request %s failed", request_id, exc_info=error, extra=seen)
    elif problem.status == ServiceError.status:  # the trace is the batch's, and so is its line in the log
        log.error("request %s failed with its batch", request_id, extra=seen)
    if not isinstance(problem, ClientGone):
        telemetry.record_refusal(problem.code)
    return problem_response(problem, request_id, _headers_of(error))


def _headers_of(error: Exception) -> dict[str, str]:
    """Return the headers that an error brings. HEAD is answered wherever GET is: see RequestContext."""
    headers = dict(getattr(error, "headers", None) or {})
    if "Allow" in headers:
        methods = set(headers["Allow"].split(", "))
        headers["Allow"] = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
    return headers


def _as_service_error(error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return BadParameter.of({str(one["loc"][1]).replace("x_timeout_ms", "x-timeout-ms") for one in error.errors()})
    status = getattr(error, "status_code", 500)
    # Starlette's 401 is a file of the API page's that the service may not read.
    known = {400: MalformedRequest, 401: NotFound, 403: NotFound, 404: NotFound, 405: MethodNotAllowed}
    return known.get(status, ServiceError)()
