"""POST /predict: the way of one request, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, cast

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json

from app.bodies import read_body, split_images
from app.connections import WHEN_GONE
from app.errors import BadParameter, ServiceError, UnsupportedMediaType
from app.imaging import Decoded, Entry
from app.jobs import Job, Outcome
from app.parts import Parts
from app.routes.common import KeyDep, ServiceDep, holding_key
from app.routes.document import PREDICT_BODY, PREDICT_RESPONSES
from app.schemas import PredictResponse
from app.service import Service

# Larger bodies are taken apart in a thread: a hostile one can take seconds.
SMALL_BODY_BYTES = 64 << 10

# Another server than ours does not say when a client leaves.
NOBODY_TELLS: dict[str, Callable[[object], None]] = {"tell": lambda _callback: None}

PATH = "/predict"

Positive = Annotated[int, Field(ge=1)]
POSITIVE: TypeAdapter[int] = TypeAdapter(Positive)

router = APIRouter(tags=["predict"])


@router.post(
    PATH,
    response_model=PredictResponse,
    responses=PREDICT_RESPONSES,
    openapi_extra={"requestBody": PREDICT_BODY},
    dependencies=[KeyDep],
    summary="Classify one or many images",
)
async def documented(
    request: Request,
    service: ServiceDep,
    top_k: Annotated[Positive | SkipJsonSchema[None], Query(description="classes to return; all by default")] = None,
    x_timeout_ms: Annotated[
        Positive | SkipJsonSchema[None], Header(description="deadline, at most the server's own")
    ] = None,
) -> Response:
    """Send an image file as the body, several as multipart fields named `file` or base64 in JSON, or a NumPy array.

    The array is a .npy file of uint8 (N, 3, S, S) in C order, RGB, S the model's input size: nothing is left to decode.
    """
    return await predict(request, service, top_k, x_timeout_ms)


async def answer(request: Request) -> Response:
    """Answer as `documented` does, without the framework between: the way that requests take (app/shortcut.py)."""
    service: Service = request.app.state.service
    service.require_room()  # most requests of an overload end here, before they cost any more
    texts = {
        "top_k": request.query_params.get("top_k") if request.scope["query_string"] else None,
        "x-timeout-ms": request.headers.get("x-timeout-ms"),
    }
    numbers = {name: _positive(text) for name, text in texts.items() if text is not None}
    with holding_key(request, service):
        if None in numbers.values():
            raise BadParameter.of(name for name, number in numbers.items() if number is None)
        return await predict(request, service, numbers.get("top_k"), numbers.get("x-timeout-ms"))


def _positive(text: str) -> int | None:
    """Read an integer of at least 1 as FastAPI does, or return None."""
    try:
        return POSITIVE.validate_python(text)
    except ValidationError:
        return None


async def predict(request: Request, service: Service, top_k: int | None, x_timeout_ms: int | None) -> Response:
    """Read the body, take it apart, and classify what it holds. Raises ServiceError."""
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
        if any(encoding.lower() != "identity" for encoding in headers.getlist("content-encoding")):
            raise UnsupportedMediaType
        split = partial(split_images, headers.get("content-type"), body, settings.max_images, parts.input_size)
        entries = split() if len(body) <= SMALL_BODY_BYTES else await parts.decoder.run(split, deadline)
        return await _classify(request, service, parts, entries, Wish(deadline, top_k or len(parts.classes)))


@dataclass(frozen=True, slots=True)
class Wish:
    """What a request asks for besides its images."""

    deadline: float
    top_k: int


async def _classify(request: Request, service: Service, parts: Parts, entries: list[Entry], wish: Wish) -> Response:
    """Decode, wait for a batch, and answer."""
    ticket = parts.batcher.admit(len(entries), wish.deadline)
    try:
        started = time.perf_counter()
        decoded = await parts.decoder.decode_all(entries, wish.deadline)
        decode_s = time.perf_counter() - started
        service.telemetry.decode_seconds.observe(decode_s)
        images = _readable(decoded)
        if images:
            outcome = await _outcome(request, parts.batcher.submit(ticket, np.stack(images), wish.deadline))
        else:
            outcome = Outcome(np.empty((0, len(parts.classes)), np.float32), parts.batcher.model, 0.0, 0.0)
    except ServiceError as error:
        service.telemetry.images.labels(error.code).inc(len(entries))
        raise
    finally:
        ticket.release()
    ranking = _rank(outcome.probabilities)
    _count(service, decoded, outcome.queue_s, ranking)
    predictions = _predictions(parts.classes, decoded, ranking, wish.top_k)
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
        # Its stack holds the list and the body: left in the list, it would keep both until a garbage collection.
        raise cast(ServiceError, decoded.pop())
    return [one for one in decoded if not isinstance(one, ServiceError)]


async def _outcome(request: Request, job: Job) -> Outcome:
    """Wait for a job, and abandon it when the client leaves."""
    tell = request.scope.get("extensions", {}).get(WHEN_GONE, NOBODY_TELLS)["tell"]
    tell(job.abandon)
    try:
        return await job.wait()
    finally:
        tell(None)


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every image's classes from the likeliest to the least likely (N, classes), and their probabilities, rounded."""

    order: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def _rank(probabilities: NDArray[np.float32]) -> Ranking:
    """Rank the classes of float32 (N, classes); of equal ones the first comes first."""
    order = (-probabilities).argsort(axis=1, kind="stable")
    return Ranking(order, probabilities[np.arange(len(order))[:, None], order].astype(np.float64).round(6))


def _count(service: Service, decoded: list[Decoded], queue_s: float, ranking: Ranking) -> None:
    """Record what became of the request's images."""
    telemetry = service.telemetry
    telemetry.queue_seconds.observe(queue_s)
    telemetry.predicted(ranking.order[:, 0].tolist(), ranking.probabilities[:, 0].tolist())
    for one in decoded:
        if isinstance(one, ServiceError):
            telemetry.images.labels(one.code).inc()


def _predictions(classes: list[str], decoded: list[Decoded], ranking: Ranking, top_k: int) -> list[dict[str, Any]]:
    """Put the ranking into words, in the request's order: `top_k` classes an image, or its error in its place."""
    answers = zip(ranking.order[:, :top_k].tolist(), ranking.probabilities[:, :top_k].tolist(), strict=True)
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
