"""POST /predict as the framework answers it and documents it: the way of one request, top to bottom.

Small requests, which are most of them, take the same steps without the framework: fast_predict.py.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from app.batching.jobs import Job, Outcome
from app.errors import NotReady, ServiceError
from app.http.asgi_extension import CONNECTION, ClientConnection
from app.http.bodies import SMALL_BODY_BYTES, read_body, refuse_codings, split_images
from app.http.parameters import Options, Parameters, Positive
from app.imaging import Entry
from app.predictor import Predictor
from app.routes.answers import compose, compose_in_thread, is_large, nothing_to_compute, readable
from app.routes.common import KeyDep, ServiceDep
from app.routes.document import PREDICT_BODY, PREDICT_RESPONSES
from app.schemas import PredictResponse
from app.service import Service

PATH = "/predict"

router = APIRouter(tags=["predict"])


@router.post(
    PATH,
    response_model=PredictResponse,
    responses=PREDICT_RESPONSES,
    openapi_extra={"requestBody": PREDICT_BODY},
    dependencies=[KeyDep],
    summary="Classify one or many images",
)
async def predict(
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
    service.refuse_if_full()  # before the body is read
    predictor = service.require_predictor()
    settings = service.settings
    parameters = Parameters(top_k, x_timeout_ms)
    options = parameters.resolve(len(predictor.classes), settings.timeout_ms, time.monotonic())
    headers = request.headers
    with service.body_budget.hold() as take:
        body = await read_body(
            request.receive,
            headers.get("content-length"),
            take,
            max_bytes=settings.max_body_bytes,
            deadline=parameters.body_deadline(settings.timeout_ms, settings.body_timeout_s),
        )
        predictor = service.require_predictor()  # which may have ended while the body came
        refuse_codings(headers.getlist("content-encoding"))
        split = partial(split_images, headers.get("content-type"), body, settings.max_images, predictor.input_size)
        entries = split() if len(body) <= SMALL_BODY_BYTES else await predictor.decoder.run(split, options.deadline)
        del body, split  # the files are a copy
        return await _classify(request, service, predictor, entries, options)


async def _classify(
    request: Request, service: Service, predictor: Predictor, entries: list[Entry], options: Options
) -> Response:
    """Decode, wait for a batch, and answer. The files are let go once they are decoded: `entries` is empty then."""
    telemetry = service.telemetry
    count = len(entries)
    ticket = predictor.batcher.admit(count, options.deadline)
    try:
        started = time.perf_counter()
        decoded = await predictor.decoder.decode_all(entries, options.deadline)
        entries.clear()
        decode_s = time.perf_counter() - started
        telemetry.decode_seconds.observe(decode_s)
        images = readable(decoded)
        if images:
            outcome = await _await_job(request, predictor.batcher.submit(ticket, np.stack(images), options.deadline))
        else:
            outcome = nothing_to_compute(predictor)
        parts = telemetry, predictor, decoded, outcome
        if is_large(outcome):
            body, timing = await compose_in_thread(*parts, options=options, decode_s=decode_s)
        else:
            body, timing = compose(*parts, top_k=options.top_k, decode_s=decode_s)
    except BaseException as error:
        telemetry.images.labels(_metric_label(error)).inc(count)
        raise
    finally:
        ticket.release()
    return Response(body, media_type="application/json", headers={"server-timing": timing})


def _metric_label(error: BaseException) -> str:
    """Return the metrics' label for the outcome of a request that ended with `error`."""
    if isinstance(error, asyncio.CancelledError):  # the drain's time is over
        return NotReady.code
    return error.code if isinstance(error, ServiceError) else ServiceError.code


async def _await_job(request: Request, job: Job) -> Outcome:
    """Wait for a job, and abandon it when the client leaves."""
    connection: ClientConnection = request.scope["extensions"][CONNECTION]  # RequestContext sees to it that it is there
    connection.when_gone(job.abandon)
    try:
        return await job.future
    finally:
        connection.when_gone(None)
