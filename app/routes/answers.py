"""What the engine found out about a request's images -> the answer's JSON and Server-Timing, and the metrics."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from math import isnan
from typing import cast

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.batching.jobs import Outcome
from app.decode_pool import Work
from app.errors import ServiceError
from app.http.parameters import Options
from app.imaging import Decoded, DecodingTimes
from app.predictor import Predictor
from app.telemetry import Telemetry

log = logging.getLogger(__name__)

# Classes by index, each with its probability.
Ranking = list[tuple[int, float]]
# An answer's JSON, and of each image with an answer the likeliest class.
Written = tuple[bytes, Ranking]

# An answer from more probabilities than this, of all images together, is composed in a thread: on the event loop it
# would hold up probes and everybody else for milliseconds.
LARGE = 4096

# Beyond as many, NumPy sorts faster; also without Python's lock, which `sorted` holds to its end.
MANY_CLASSES = 64


def readable(decoded: list[Decoded]) -> list[NDArray[np.uint8]]:
    """Return the images that could be read. Raises the error of one that is alone in its request."""
    if len(decoded) == 1 and isinstance(decoded[0], ServiceError):
        # Its stack holds the list and the body: left in the list, it would keep both until a garbage collection.
        raise cast(ServiceError, decoded.pop())
    return [image for image in decoded if not isinstance(image, ServiceError)]


def nothing_to_compute(predictor: Predictor) -> Outcome:
    """Return the outcome of a request none of whose images could be read."""
    return Outcome(np.empty((0, len(predictor.classes))), predictor.batcher.model, 0.0, 0.0)


def is_large(outcome: Outcome) -> bool:
    """Whether an answer takes so long to compose that the event loop should not do it."""
    return outcome.probabilities.size > LARGE


def write_in_thread(
    predictor: Predictor, decoded: Sequence[Decoded | None], outcome: Outcome, options: Options
) -> Work[Callable[[], Written], Written]:
    """Begin to do what `write_answer` does, while the event loop goes on; the result is a list of it alone."""
    return predictor.decoder.run(partial(write_answer, predictor, decoded, outcome, options.top_k), options.deadline)


def write_answer(predictor: Predictor, decoded: Sequence[Decoded | None], outcome: Outcome, top_k: int) -> Written:
    """Return the JSON that says, for each image in the request's order, what it shows or what is wrong with it.

    Besides, of each image with an answer, the likeliest class. `decoded` has an error for each image that could not be
    read, and anything for those that could, which `outcome` has, in their order; at most `top_k` classes of each are
    named.
    Runs in any thread.
    Written as text: all but the numbers is the same in every answer, and an encoder takes twice the time.
    """
    rows = iter(outcome.probabilities)
    likeliest: Ranking = []
    predictions: list[bytes] = []  # not texts: a large one would be copied once more, with Python's lock
    for result in decoded:
        if isinstance(result, ServiceError):
            predictions.append(to_json({"error": result.problem()}))
        else:
            ranked = ranking(next(rows), top_k)
            if isnan(ranked[0][1]):
                predictions.append(to_json({"error": ServiceError().problem()}))
                continue
            likeliest.append(ranked[0])
            classes = [f"{predictor.openings[index]}{probability!r}}}" for index, probability in ranked]
            predictions.append(f'{classes[0][:-1]},"probabilities":[{",".join(classes)}]}}'.encode())
    return b'{"model":%b,"predictions":[%b]}' % (to_json(outcome.model), b",".join(predictions)), likeliest


def ranking(probabilities: NDArray[np.float64], top_k: int) -> Ranking:
    """Return the likeliest of (classes,) with their probabilities, the likeliest first; of equal ones the first is."""
    values = probabilities.tolist()
    if len(values) > MANY_CLASSES:
        order = np.argsort(-probabilities, kind="stable").tolist()
    else:
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    return [(index, values[index]) for index in order[:top_k]]


def record_images(
    telemetry: Telemetry,
    decoded: Sequence[Decoded | None],
    outcome: Outcome,
    likeliest: Ranking,
    times: DecodingTimes,
    *,
    request_id: str,
) -> str:
    """Count in the metrics what an answer says of each image; return the value of its Server-Timing header.

    What the engine has no answer for is logged with the request's id, which clients are told to ask by.
    """
    queue_s = times.waited_s + outcome.queue_s
    telemetry.queue_seconds.observe(queue_s)
    telemetry.record_prediction([index for index, _ in likeliest], [probability for _, probability in likeliest])
    if len(likeliest) < len(decoded):
        errors = [result.code for result in decoded if isinstance(result, ServiceError)]
        unknown = len(decoded) - len(errors) - len(likeliest)
        if unknown:
            log.error("request %s: no finite answer for %d of its images", request_id, unknown)
        for code in errors + [ServiceError.code] * unknown:
            telemetry.images.labels(code).inc()
    return _server_timing(times.busy_s, queue_s, outcome.inference_s)


def _server_timing(decode_s: float, queue_s: float, inference_s: float) -> str:
    """Return the Server-Timing header: where the request's time went, in milliseconds."""
    return f"decode;dur={decode_s * 1e3:.2f}, queue;dur={queue_s * 1e3:.2f}, inference;dur={inference_s * 1e3:.2f}"
