"""What the engine found out about a request's images -> the answer's JSON and Server-Timing, and the metrics."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.batching.jobs import Outcome
from app.errors import ServiceError
from app.imaging import Decoded
from app.predictor import Predictor
from app.telemetry import Telemetry

# Classes by index, each with its probability, the likeliest first.
Ranking = list[tuple[int, float]]


def readable(decoded: list[Decoded]) -> list[NDArray[np.uint8]]:
    """Return the images that could be read. Raises the error of one that is alone in its request."""
    if len(decoded) == 1 and isinstance(decoded[0], ServiceError):
        # Its stack holds the list and the body: left in the list, it would keep both until a garbage collection.
        raise cast(ServiceError, decoded.pop())
    return [image for image in decoded if not isinstance(image, ServiceError)]


def nothing_to_compute(predictor: Predictor) -> Outcome:
    """Return the outcome of a request none of whose images could be read."""
    return Outcome(np.empty((0, len(predictor.classes))), predictor.batcher.model, 0.0, 0.0)


def compose(
    telemetry: Telemetry, predictor: Predictor, decoded: list[Decoded], outcome: Outcome, *, top_k: int, decode_s: float
) -> tuple[bytes, str]:
    """Count an answer's images in the metrics; return its JSON and the value of its Server-Timing header.

    `outcome` has the images of `decoded` that could be read, in their order; at most `top_k` classes of each are named.
    """
    ranked = [ranking(row, top_k) for row in outcome.probabilities.tolist()]
    _record_images(telemetry, decoded, outcome, ranked)
    return _answer_json(predictor, decoded, outcome, ranked), _server_timing(decode_s, outcome)


def ranking(probabilities: list[float], top_k: int) -> Ranking:
    """Return the likeliest classes with their probabilities, the likeliest first; of equal ones the first one is."""
    order = sorted(range(len(probabilities)), key=probabilities.__getitem__, reverse=True)[:top_k]
    return [(index, probabilities[index]) for index in order]


def _answer_json(predictor: Predictor, decoded: list[Decoded], outcome: Outcome, ranked: list[Ranking]) -> bytes:
    """Return the JSON that says, for each image in the request's order, what it shows or what is wrong with it.

    Written as text: all but the numbers is the same in every answer, and an encoder takes twice the time.
    """
    following = iter(ranked)
    predictions: list[str] = []
    for result in decoded:
        if isinstance(result, ServiceError):
            predictions.append(to_json({"error": result.problem()}).decode())
        else:
            classes = [f"{predictor.openings[index]}{probability!r}}}" for index, probability in next(following)]
            predictions.append(f'{classes[0][:-1]},"probabilities":[{",".join(classes)}]}}')
    return f'{{"model":{to_json(outcome.model).decode()},"predictions":[{",".join(predictions)}]}}'.encode()


def _record_images(telemetry: Telemetry, decoded: list[Decoded], outcome: Outcome, ranked: list[Ranking]) -> None:
    """Count what an answer says of each image."""
    telemetry.queue_seconds.observe(outcome.queue_s)
    telemetry.record_prediction([ranks[0][0] for ranks in ranked], [ranks[0][1] for ranks in ranked])
    for result in decoded:
        if isinstance(result, ServiceError):
            telemetry.images.labels(result.code).inc()


def _server_timing(decode_s: float, outcome: Outcome) -> str:
    """Return the Server-Timing header: where the request's time went, in milliseconds."""
    return (
        f"decode;dur={decode_s * 1e3:.2f}, queue;dur={outcome.queue_s * 1e3:.2f}, "
        f"inference;dur={outcome.inference_s * 1e3:.2f}"
    )
