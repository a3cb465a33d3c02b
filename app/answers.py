"""What the engine found out about a request's images -> the answer's JSON, and what is counted of it."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.errors import ServiceError
from app.imaging import Decoded
from app.jobs import Outcome
from app.parts import Parts
from app.telemetry import Telemetry


def readable(decoded: list[Decoded]) -> list[NDArray[np.uint8]]:
    """Return the images that could be read. Raises the error of one that is alone in its request."""
    if len(decoded) == 1 and isinstance(decoded[0], ServiceError):
        # Its stack holds the list and the body: left in the list, it would keep both until a garbage collection.
        raise cast(ServiceError, decoded.pop())
    return [one for one in decoded if not isinstance(one, ServiceError)]


def nothing_to_compute(parts: Parts) -> Outcome:
    """Return the outcome of a request none of whose images could be read."""
    return Outcome(np.empty((0, len(parts.classes)), np.float32), parts.batcher.model, 0.0, 0.0)


def answer_json(parts: Parts, telemetry: Telemetry, decoded: list[Decoded], outcome: Outcome, top_k: int) -> bytes:
    """Return the JSON that says, for each image in the request's order, what it shows or what is wrong with it."""
    answers = [_likeliest(parts.classes, row, top_k) for row in outcome.probabilities.tolist()]
    telemetry.queue_seconds.observe(outcome.queue_s)
    winners = [likeliest[0] for likeliest in answers]
    telemetry.predicted([one["index"] for one in winners], [one["probability"] for one in winners])
    for one in decoded:
        if isinstance(one, ServiceError):
            telemetry.images.labels(one.code).inc()
    return to_json({"model": outcome.model, "predictions": _predictions(decoded, answers)})


def server_timing(decode_s: float, outcome: Outcome) -> str:
    """Return the Server-Timing header: where the request's time went, in milliseconds."""
    return (
        f"decode;dur={decode_s * 1e3:.2f}, queue;dur={outcome.queue_s * 1e3:.2f}, "
        f"inference;dur={outcome.inference_s * 1e3:.2f}"
    )


def _likeliest(classes: list[str], probabilities: list[float], top_k: int) -> list[dict[str, Any]]:
    """Rank an image's classes, the likeliest first; of equal ones the first comes first."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:top_k]
    return [{"label": classes[at], "index": at, "probability": round(probabilities[at], 6)} for at in order]


def _predictions(decoded: list[Decoded], answers: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return what is said of each image in the request's order: its likeliest classes, or its error in its place."""
    following = iter(answers)
    predictions: list[dict[str, Any]] = []
    for one in decoded:
        if isinstance(one, ServiceError):
            predictions.append({"error": one.problem()})
        else:
            likeliest = next(following)
            predictions.append({**likeliest[0], "probabilities": likeliest})
    return predictions
