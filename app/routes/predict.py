"""POST /predict: the way of one request, top to bottom."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from numpy.typing import NDArray
from pydantic_core import to_json

from app.bodies import IMAGE_TYPES, read_body, split_images
from app.errors import BadParameter, ServiceError, UnsupportedMediaType
from app.imaging import Decoded
from app.jobs import Job, Outcome
from app.parts import Parts
from app.routes.common import KeyDep, ServiceDep
from app.schemas import Base64Images, PredictResponse, Problem
from app.service import Service

# Larger bodies are taken apart in a thread: a hostile one can take seconds.
SMALL_BODY_BYTES = 64 << 10

router = APIRouter(tags=["predict"])

PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "content": {"application/problem+json": {}}, "description": description}
    for status, description in {
        400: "Malformed request",
        401: "Missing or wrong key",
        408: "The header or the body arrived too slowly",
        413: "Too many bytes or images",
        415: "Unsupported media type",
        422: "Not decodable, too many pixels, or a bad parameter",
        429: "The queue is full, or the key has too many requests under way",
        500: "A bug; the request id helps to find it",
        503: "Starting, draining or broken",
        504: "The deadline passed",
    }.items()
}

BINARY = {"schema": {"type": "string", "format": "binary"}}
REQUEST_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
        "application/json": {"schema": Base64Images.model_json_schema()},
        **dict.fromkeys(sorted(IMAGE_TYPES), BINARY),
    },
}


@router.post(
    "/predict",
    response_model=PredictResponse,
    responses=PROBLEMS,
    openapi_extra={"requestBody": REQUEST_BODY},
    dependencies=[KeyDep],
    summary="Classify one or many images",
)
async def predict(
    request: Request,
    service: ServiceDep,
    top_k: Annotated[int | None, Query(ge=1, description="classes to return; all by default")] = None,
    x_timeout_ms: Annotated[int | None, Header(ge=1, description="deadline, at most the server's own")] = None,
) -> Response:
    """Send an image file as the body, several as multipart fields named `file`, or base64 in JSON."""
    parts = service.require_parts()
    if top_k is not None and top_k > len(parts.classes):
        raise BadParameter(f"top_k must be from 1 to {len(parts.classes)}.")
    settings = service.settings
    timeout_ms = min(x_timeout_ms or settings.timeout_ms, settings.timeout_ms)
    deadline = time.monotonic() + timeout_ms / 1000
    headers = request.headers
    with service.body_budget.hold() as take:
        body = await read_body(
            request.receive,
            headers.get("content-length"),
            take,
            max_bytes=settings.max_body_bytes,
            timeout_s=settings.body_timeout_s,
        )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UnsupportedMediaType
        split = partial(split_images, headers.get("content-type"), body, settings.max_images)
        files = split() if len(body) <= SMALL_BODY_BYTES else await parts.decoder.run(split, deadline)
        return await _classify(request, service, parts, files, Wish(deadline, top_k or len(parts.classes)))


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for besides its images."""

    deadline: float
    top_k: int


async def _classify(
    request: Request, service: Service, parts: Parts, files: list[bytes | ServiceError], wish: Wish
) -> Response:
    """Decode, wait for a batch, and answer."""
    ticket = parts.batcher.admit(len(files))
    try:
        started = time.perf_counter()
        decoded = await parts.decoder.decode_all(files, wish.deadline)
        decode_s = time.perf_counter() - started
        service.telemetry.decode_seconds.observe(decode_s)
        images = _readable(decoded)
        if images:
            outcome = await _outcome(request, parts.batcher.submit(ticket, np.stack(images), wish.deadline))
        else:
            outcome = Outcome(np.empty((0, len(parts.classes)), np.float32), parts.batcher.model, 0.0, 0.0)
    except ServiceError as error:
        service.telemetry.images.labels(error.code).inc(len(files))
        raise
    finally:
        ticket.release()
    _count(service, decoded, outcome)
    predictions = _predictions(parts.classes, decoded, outcome, wish.top_k)
    timing = (
        f"decode;dur={decode_s * 1e3:.2f}, queue;dur={outcome.queue_s * 1e3:.2f}, "
        f"inference;dur={outcome.inference_s * 1e3:.2f}"
    )
    return Response(
        to_json({"model": outcome.model, "predictions": predictions}),
        media_type="application/json",
        headers={"server-timing": timing},
    )


def _readable(decoded: list[Decoded]) -> list[NDArray[np.uint8]]:
    """Return the images that could be read. Raises the error of one that is alone in its request."""
    if len(decoded) == 1 and isinstance(decoded[0], ServiceError):
        raise decoded[0]
    return [one for one in decoded if not isinstance(one, ServiceError)]


async def _outcome(request: Request, job: Job) -> Outcome:
    """Wait for a job, and abandon it when the client leaves."""

    async def abandon_on_disconnect() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.abandon()

    watcher = asyncio.create_task(abandon_on_disconnect())
    try:
        return await job.wait()
    finally:
        watcher.cancel()


def _count(service: Service, decoded: list[Decoded], outcome: Outcome) -> None:
    """Record what became of the request's images."""
    telemetry = service.telemetry
    telemetry.queue_seconds.observe(outcome.queue_s)
    telemetry.predicted(outcome.probabilities.argmax(axis=1), outcome.probabilities.max(axis=1))
    for one in decoded:
        if isinstance(one, ServiceError):
            telemetry.images.labels(one.code).inc()


def _predictions(classes: list[str], decoded: list[Decoded], outcome: Outcome, top_k: int) -> list[dict[str, Any]]:
    """Put the outcome into words, in the request's order: `top_k` classes an image, or its error in its place."""
    order = np.argsort(-outcome.probabilities, axis=1, kind="stable")[:, :top_k]
    ranked = np.take_along_axis(outcome.probabilities, order, axis=1).astype(float).round(6)
    answers = zip(order.tolist(), ranked.tolist(), strict=True)
    predictions: list[dict[str, Any]] = []
    for one in decoded:
        if isinstance(one, ServiceError):
            predictions.append({"error": one.problem()})
            continue
        likeliest = [
            {"label": classes[index], "index": index, "probability": probability}
            for index, probability in zip(*next(answers), strict=True)
        ]
        predictions.append({**likeliest[0], "probabilities": likeliest})
    return predictions
