"""Probes and metrics, which may have a port of their own, and the model's card. Never behind inference.

Nothing here is awaited, but for the metrics of several processes: the engine process puts them together.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app.errors import NotReady
from app.http.problems import problem_headers
from app.lifecycle import State
from app.routes.common import KeyDep, ServiceDep
from app.routes.document import (
    METRICS_RESPONSES,
    MODEL_RESPONSES,
    ON_ANY_PATH,
    ON_EVERY_ANSWER,
    PROBE_RESPONSES,
    RETRY_AFTER,
)
from app.schemas import Health, ModelCard
from app.service import Service

router = APIRouter(tags=["operations"])
probes = APIRouter(tags=["operations"])  # no key

UNREADY_HEADERS = problem_headers(NotReady())


@probes.get(
    "/livez", response_class=PlainTextResponse, responses=PROBE_RESPONSES, summary="Does the process make progress?"
)
async def livez(service: ServiceDep) -> Response:
    """200 unless work has waited for too long without any progress: then a restart helps."""
    return _probe(service.stalled(), "alive")


@probes.get(
    "/readyz", response_class=PlainTextResponse, responses=PROBE_RESPONSES, summary="Would a prediction succeed now?"
)
async def readyz(service: ServiceDep) -> Response:
    """200 only when the engine is warm, has passed its self-test and does not fail, and its batcher runs."""
    return _probe(service.unready_reason(), "ready")


@probes.get(
    "/health",
    response_model=Health,
    responses=ON_ANY_PATH | {503: {"model": Health, "headers": ON_EVERY_ANSWER | RETRY_AFTER}},
    summary="The state as JSON",
)
async def health(service: ServiceDep) -> Response:
    """The same status code as /readyz."""
    body = describe(service)
    return JSONResponse(
        body.model_dump(mode="json"), 200 if body.ready else 503, None if body.ready else UNREADY_HEADERS
    )


@probes.get("/metrics", response_class=Response, responses=METRICS_RESPONSES, summary="Prometheus metrics")
async def metrics(service: ServiceDep) -> Response:
    """Prometheus' text format."""
    return Response(await service.metrics(), media_type=CONTENT_TYPE_LATEST)


@router.get(
    "/model",
    response_model=ModelCard,
    responses=MODEL_RESPONSES,
    dependencies=[KeyDep],
    summary="What is served",
)
async def model_card(service: ServiceDep) -> dict[str, Any]:
    """Architecture, classes, transform, SHA-256, and the accuracy and calibration that were measured."""
    return service.require_predictor().card


def describe(service: Service) -> Health:
    """Gather the service's state."""
    predictor = service.predictor
    reason = service.unready_reason()
    state = service.lifecycle.state
    return Health.model_validate(
        {
            "status": "stalled" if reason and state is State.READY else state,
            "ready": reason is None,
            "reason": reason,
            "model": predictor.batcher.model if predictor else None,
            "device": predictor.card["device"] if predictor else None,
            "dtype": predictor.card["dtype"] if predictor else None,
            "queue_images": int(service.queued_images()),
            "reload": service.reloads,
            "uptime_s": round(service.lifecycle.uptime_s, 3),
        }
    )


def _probe(reason: str | None, text: str) -> Response:
    """Answer 503 with a reason, or 200 with the text."""
    headers = {"cache-control": "no-store"} | (UNREADY_HEADERS if reason else {})
    return Response(f"{reason or text}\n", 503 if reason else 200, headers, "text/plain")
