"""What the engine found out about a request's images -> the answer's JSON, and what is counted of it."""

from __future__ import annotations

from dataclasses import dataclass
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
    ranking = _rank(outcome.probabilities)
    telemetry.queue_seconds.observe(outcome.queue_s)
    telemetry.predicted(ranking.order[:, 0].tolist(), ranking.probabilities[:, 0].tolist())
    for one in decoded:
        if isinstance(one, ServiceError):
            telemetry.images.labels(one.code).inc()
    return to_json({"model": outcome.model, "predictions": _predictions(parts.classes, decoded, ranking, top_k)})


def server_timing(decode_s: float, outcome: Outcome) -> str:
    """Return the Server-Timing header: where the request's time went, in milliseconds."""
    return (
        f"decode;dur={decode_s * 1e3:.2f}, queue;dur={outcome.queue_s * 1e3:.2f}, "
        f"inference;dur={outcome.inference_s * 1e3:.2f}"
    )


@dataclass(frozen=True, slots=True)
class Ranking:
    """Every image's classes from the likeliest to the least likely (N, classes), and their probabilities, rounded."""

    order: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def _rank(probabilities: NDArray[np.float32]) -> Ranking:
    """Rank the classes of float32 (N, classes); of equal ones the first comes first."""
    order = (-probabilities).argsort(axis=1, kind="stable")
    return Ranking(order, probabilities[np.arange(len(order))[:, None], order].astype(np.float64).round(6))


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
