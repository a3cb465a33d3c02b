"""POST /predict as the framework answers it and documents it: the way of one request, top to bottom.

Small requests, which are most of them, take the same steps without the framework: fast_predict.py.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import Annotated, Protocol, TypeVar

import numpy as np
from fastapi import APIRouter, Header, Query, Request, Response
from pydantic.json_schema import SkipJsonSchema

from app.errors import NotReady, ServiceError
from app.http.answering import connection_of
from app.http.bodies import (
    SLOW_FORMS,
    SMALL_BODY_BYTES,
    announced_bytes,
    kind_of,
    read_body,
    refuse_unread,
    split_images,
)
from app.http.byte_budget import HeldBytes
from app.http.npy import NPY_TYPE
from app.http.parameters import Options, Parameters, Positive
from app.imaging import Decoded, Decoder, DecodingTimes, Entry
from app.predictor import Predictor
from app.routes.answers import (
    is_large,
    nothing_to_compute,
    readable,
    record_images,
    write_answer,
    write_in_thread,
)
from app.routes.common import KeyDep, ServiceDep
from app.routes.document import PREDICT_BODY, PREDICT_RESPONSES
from app.schemas import PredictResponse
from app.service import Service

PATH = "/predict"

Awaited = TypeVar("Awaited")

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
    kind, announced = kind_of(headers.get("content-type")), announced_bytes(headers.get("content-length"))
    refuse_unread(kind, headers.getlist("content-encoding"), announced, settings.max_body_bytes)
    if kind != NPY_TYPE and announced > SMALL_BODY_BYTES:
        predictor.decoder.require_room(announced, options.deadline)
    with service.body_budget.hold() as held:
        body = await read_body(
            request.receive,
            held.take,
            max_bytes=settings.max_body_bytes,
            deadline=parameters.body_deadline(settings.timeout_ms, settings.body_timeout_s),
        )
        predictor = service.require_predictor()  # which may have ended while the body came
        split = partial(split_images, headers.get("content-type"), body, settings.max_images, predictor.input_size)
        if len(body) > SMALL_BODY_BYTES and kind in SLOW_FORMS:
            (entries,) = await _unless_gone(request, predictor.decoder.run(split, options.deadline))
        else:
            entries = split()
        del body, split  # files of a form are a copy
        return await _classify(request, service, predictor, entries, options=options, held=held)


async def _classify(
    request: Request,
    service: Service,
    predictor: Predictor,
    entries: list[Entry],
    *,
    options: Options,
    held: HeldBytes,
) -> Response:
    """Decode, wait for a batch, and answer.

    The files are let go once they are decoded, and the bytes held for them: `entries` is empty then.
    """
    telemetry = service.telemetry
    count = len(entries)
    ticket = predictor.batcher.admit(count, options.deadline)
    try:
        decoded, times = await _decode(request, predictor.decoder, entries, options.deadline)
        entries.clear()
        telemetry.decode_seconds.observe(times.busy_s)
        images = readable(decoded)
        job = predictor.batcher.submit(ticket, np.stack(images), options.deadline) if images else None
        problems = [result if isinstance(result, ServiceError) else None for result in decoded]
        del decoded, images  # arrays that came ready are a view of the body
        held.give_back()
        outcome = nothing_to_compute(predictor) if job is None else await _unless_gone(request, job)
        parts = predictor, problems, outcome
        if is_large(outcome):
            ((body, likeliest),) = await _unless_gone(request, write_in_thread(*parts, options))
        else:
            body, likeliest = write_answer(*parts, options.top_k)
        connection_of(request.scope).require_room(len(body))
    except BaseException as error:
        telemetry.images.labels(_metric_label(error)).inc(count)
        raise
    finally:
        ticket.release()
    timing = record_images(telemetry, problems, outcome, likeliest, times, request_id=request.state.request_id)
    return Response(body, media_type="application/json", headers={"server-timing": timing})


def _metric_label(error: BaseException) -> str:
    """Return the metrics' label for the outcome of a request that ended with `error`."""
    if isinstance(error, asyncio.CancelledError):  # the drain's time is over
        return NotReady.code
    return error.code if isinstance(error, ServiceError) else ServiceError.code


async def _decode(
    request: Request, decoder: Decoder, entries: list[Entry], deadline: float
) -> tuple[list[Decoded], DecodingTimes]:
    """Return what is in each entry, and how long that took."""
    began = time.perf_counter()
    decoded = decoder.decode_here(entries)
    if decoded is not None:
        return decoded, DecodingTimes(time.perf_counter() - began)
    work = decoder.decode_in_threads(entries, deadline)
    try:
        return await _unless_gone(request, work), DecodingTimes(work.busy_s, work.waited_s)
    finally:
        del work  # as below


class Pending(Protocol[Awaited]):
    """What is being done for a request, and can be abandoned: threads' work, or a job of the batcher's."""

    @property
    def future(self) -> asyncio.Future[Awaited]:
        """Will have the result."""

    def abandon(self) -> None:
        """End it: the future raises ClientGone."""


async def _unless_gone(request: Request, pending: Pending[Awaited]) -> Awaited:
    """Wait for what is being done, and abandon it when the client leaves."""
    connection = connection_of(request.scope)
    connection.when_gone(pending.abandon)
    try:
        return await pending.future
    finally:
        connection.when_gone(None)
        del pending  # its future has the error, whose stack has this: a circle
