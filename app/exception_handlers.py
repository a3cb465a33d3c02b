"""Exceptions that end a request -> `application/problem+json`, the same for both applications."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.responses import Response

from app.errors import BadParameter, MalformedRequest, MethodNotAllowed, NotFound, ServiceError
from app.http.problems import PROBLEM_TYPE, problem_body, problem_headers
from app.request_end import count_refusal, log_failure


async def answer_with_problem(request: Request, error: Exception) -> Response:
    """Return the problem for what was raised in a request: the one handler of both applications."""
    problem = _as_service_error(error)
    request_id = request.state.request_id
    log_failure(error, problem, request_id)
    count_refusal(request.app.state.service.telemetry, problem)
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
        return BadParameter.of(
            {str(problem["loc"][1]).replace("x_timeout_ms", "x-timeout-ms") for problem in error.errors()}
        )
    status = getattr(error, "status_code", 500)
    # Starlette's 401 is a file of the API page's that the service may not read.
    known = {400: MalformedRequest, 401: NotFound, 403: NotFound, 404: NotFound, 405: MethodNotAllowed}
    return known.get(status, ServiceError)()


def problem_response(error: ServiceError, request_id: str, more_headers: Mapping[str, str] | None = None) -> Response:
    """Turn an error into `application/problem+json`, with the headers that its status asks for."""
    headers = {**(more_headers or {}), **problem_headers(error)}
    body = problem_body(error, request_id)
    return Response(body, status_code=error.status, headers=headers, media_type=PROBLEM_TYPE)
