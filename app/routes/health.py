"""Probes and metrics, which may have a port of their own, and the model's card. No I/O, and never behind inference."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from app.routes.common import KeyDep, ServiceDep
from app.routes.document import METRICS_RESPONSES, MODEL_RESPONSES, ON_ANY_PATH, ON_EVERY_ANSWER, PROBE_RESPONSES
from app.schemas import Health, ModelCard
from app.service import Service

router = APIRouter(tags=["operations"])
probes = APIRouter(tags=["operations"])  # no key


@probes.get(
    "/livez", response_class=PlainTextResponse, responses=PROBE_RESPONSES, summary="Does the process make progress?"
)
async def livez(service: ServiceDep) -> Response:
    """200 unless work has waited for too long without any progress: then a restart helps."""
    stalled = service.stalled()
    return _probe(503 if stalled else 200, stalled or "alive")


@probes.get(
    "/readyz", response_class=PlainTextResponse, responses=PROBE_RESPONSES, summary="Would a prediction succeed now?"
)
async def readyz(service: ServiceDep) -> Response:
    """200 only when the engine is warm, has passed its self-test, and its batcher runs."""
    reason = service.unready_reason()
    return _probe(503 if reason else 200, reason or "ready")


@probes.get(
    "/health",
    response_model=Health,
    responses=ON_ANY_PATH | {503: {"model": Health, "headers": ON_EVERY_ANSWER}},
    summary="The state as JSON",
)
async def health(service: ServiceDep) -> Response:
    """The same status code as /readyz."""
    body = describe(service)
    return JSONResponse(body.model_dump(mode="json"), 200 if body.ready else 503)


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
    predictor = service.loaded
    reason = service.unready_reason()
    return Health.model_validate(
        {
            "status": service.lifecycle.state,
            "ready": reason is None,
            "reason": reason,
            "model": predictor.batcher.model if predictor else None,
            "device": predictor.card["device"] if predictor else None,
            "dtype": predictor.card["dtype"] if predictor else None,
            "queue_images": predictor.batcher.queued_images if predictor else 0,
            "reload": service.reloads,
            "uptime_s": round(service.lifecycle.uptime_s, 3),
        }
    )


def _probe(status: int, text: str) -> Response:
    return Response(text + "\n", status_code=status, media_type="text/plain", headers={"cache-control": "no-store"})
