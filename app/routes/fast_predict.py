"""The fast path of POST /predict, which small bodies take, and so most requests: top to bottom, on their connection.

    the whole request is here, there is room -> key? parameters? -> split -> decode -> batcher -> JSON -> connection

The steps are those of predict.py, which documents the route and takes what is large or comes slowly. What is left out:
a task, ASGI's messages, middleware, routing, dependencies. Nothing is awaited here unless threads decode or write a
large answer: the batcher calls back. While there is no room, overload.py refuses requests before they come here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from app.batching.jobs import Job, Outcome, Ticket
from app.decode_pool import Work
from app.errors import ClientGone, NotReady, ServiceError
from app.http.answering import AnsweringConnection
from app.http.bodies import SMALL_BODY_BYTES, refuse_codings, split_images
from app.http.cached_headers import CachedHeader, RequestHead
from app.http.parameters import BodyDeadline, Options
from app.http.problems import header_lines, problem_body, problem_fields
from app.http.request_ids import request_id_of
from app.imaging import Decoded, DecodingTimes
from app.lifecycle import State
from app.predictor import Predictor
from app.request_end import count_refusal, last_lines, log_failure, record_answer
from app.routes.answers import (
    Written,
    is_large,
    nothing_to_compute,
    readable,
    record_images,
    write_answer,
    write_in_thread,
)
from app.routes.common import take_key
from app.routes.crowd import Crowd
from app.routes.overload import OverloadRefusals
from app.routes.predict import PATH
from app.service import Service

Item = TypeVar("Item")
Result = TypeVar("Result")


class FastPredict:
    """The fast path to a service: what answers requests to `path` whose bodies hold at most `max_body_bytes`.

    It raises nothing. `overload` refuses requests in its place while there is no room. `cached_header` is the one
    without a key that a connection cached last: what a new connection begins with.
    """

    path = PATH

    def __init__(self, service: Service) -> None:
        self.service = service
        self._crowd = Crowd()
        self.overload = OverloadRefusals(service, self._crowd)
        self.max_body_bytes = min(SMALL_BODY_BYTES, service.settings.max_body_bytes)
        self.cached_header: CachedHeader | None = None

    def body_deadline(self, head: RequestHead) -> BodyDeadline:
        """Return how long a request's body may take."""
        settings = self.service.settings
        return head.parameters.body_deadline(settings.timeout_ms, settings.body_timeout_s)

    def begin(self, connection: AnsweringConnection, head: RequestHead, body: bytes, began: float) -> None:
        """Answer a request that began at `began`, a time.monotonic(), by `connection.send_answer`, now or later."""
        request = FastRequest(self.service, connection, head, began)
        self._crowd.begin(request.attempt, request.begin, body)

    def refuse(self, connection: AnsweringConnection, head: RequestHead, error: ServiceError, began: float) -> None:
        """Answer a request with an error: its client has gone, or `overload` refuses all of them."""
        FastRequest(self.service, connection, head, began).refuse(error)

    def give_up(self, connection: AnsweringConnection, head: RequestHead, error: ServiceError, began: float) -> None:
        """Answer a request whose body did not come in time: with an error, or what its header is refused for."""
        request = FastRequest(self.service, connection, head, began)
        try:
            request.check_head()
        except ServiceError as refusal:
            error = refusal
        request.refuse(error, body_is_here=False)


class FastRequest:
    """One request on its way to its answer, and what it holds until then. It began at `began`, a time.monotonic()."""

    __slots__ = (
        "_began",
        "_connection",
        "_count",
        "_decoded",
        "_head",
        "_options",
        "_predictor",
        "_release_key",
        "_request_id",
        "_service",
        "_ticket",
        "_times",
    )

    def __init__(self, service: Service, connection: AnsweringConnection, head: RequestHead, began: float) -> None:
        self._service = service
        self._connection = connection
        self._began = began
        self._head = head
        self._request_id = request_id_of(head.given_id)
        self._release_key: Callable[[], None] | None = None
        self._ticket: Ticket | None = None
        self._count = 0  # of images that were admitted
        self._decoded: list[Decoded] = []
        self._predictor: Predictor
        self._options: Options
        self._times: DecodingTimes

    # -- from its body to its answer

    def check_head(self) -> None:
        """Check what the request's header says. Raises ServiceError."""
        service, head = self._service, self._head
        self._release_key = take_key(service, head.key)
        head.parameters.check()
        predictor = self._predictor = service.require_predictor()
        self._options = head.parameters.resolve(len(predictor.classes), service.settings.timeout_ms, self._began)
        refuse_codings(head.codings)

    def begin(self, body: bytes) -> None:
        """Check the request, take its body apart and decode it. Raises ServiceError."""
        if self._connection.gone:  # while it waited for its turn in a crowd
            raise ClientGone
        self.check_head()
        predictor, max_images = self._predictor, self._service.settings.max_images
        entries = split_images(self._head.content_type, body, max_images, predictor.input_size)
        self._ticket = predictor.batcher.admit(len(entries), self._options.deadline)
        self._count = len(entries)
        decode_began = time.perf_counter()
        decoded = predictor.decoder.decode_here(entries)
        if decoded is None:
            decoding = predictor.decoder.decode_in_threads(entries, self._options.deadline)
            self._connection.start(self._await(decoding, self._submit))
        else:
            self._submit(decoded, DecodingTimes(time.perf_counter() - decode_began))

    async def _await(self, work: Work[Item, Result], step: Callable[[list[Result], DecodingTimes], None]) -> None:
        """Wait for what would hold up the event loop, unless the client leaves, and take the step that follows it."""
        self._connection.when_gone(work.abandon)
        try:
            try:
                results = await work.future
            finally:
                self._connection.when_gone(None)
        except asyncio.CancelledError:  # the drain's time is over
            self.refuse(NotReady())
        except Exception as error:
            self._fail(error)
        else:
            self.attempt(step, results, DecodingTimes(work.busy_s, work.waited_s))
        finally:
            del work, step  # its future has the error, whose stack has this: a circle

    def _submit(self, decoded: list[Decoded], times: DecodingTimes) -> None:
        """Queue the images that could be read."""
        self._times = times
        self._service.telemetry.decode_seconds.observe(times.busy_s)
        self._decoded = decoded
        images = readable(decoded)
        if not images:
            self._answer(nothing_to_compute(self._predictor))
            return
        assert self._ticket is not None
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        job = self._predictor.batcher.submit(self._ticket, batch, self._options.deadline)
        self._connection.when_gone(job.abandon)
        job.when_ended(self._done)

    def _done(self, job: Job) -> None:
        """Answer once the batcher has an outcome or an error."""
        self._connection.when_gone(None)
        if job.outcome is not None:
            self.attempt(self._answer, job.outcome)
        else:
            assert job.error is not None
            self._fail(job.error)  # not raised: its stack would have the job, a circle

    def _answer(self, outcome: Outcome) -> None:
        """Write the answer, a large one in a thread."""
        parts = self._predictor, self._decoded, outcome
        if is_large(outcome):
            writing = write_in_thread(*parts, self._options)
            self._connection.start(self._await(writing, lambda written, _times: self._send(outcome, *written)))
        else:
            self._send(outcome, write_answer(*parts, self._options.top_k))

    def _send(self, outcome: Outcome, written: Written) -> None:
        body, likeliest = written
        self._connection.require_room(len(body))
        timing = record_images(
            self._service.telemetry, self._decoded, outcome, likeliest, self._times, request_id=self._request_id
        )
        self._end(200, b"content-type: application/json\r\nserver-timing: %b\r\n" % timing.encode(), body)

    def _end(self, status: int, lines: bytes, body: bytes, *, body_is_here: bool = True) -> None:
        """Give back what is held, send the answer, and record it; `lines` are its header's own."""
        if self._ticket is not None:
            self._ticket.release()
        if self._release_key is not None:
            self._release_key()
            self._release_key = None
        leaving = self._service.lifecycle.state is not State.READY  # clients move on before the port closes
        lines += last_lines(self._request_id, len(body))
        self._connection.send_answer(status, lines, body, close=leaving or not body_is_here)
        seconds = time.monotonic() - self._began
        record_answer(
            self._service.telemetry, self._request_id, method="POST", route=PATH, status=status, seconds=seconds
        )

    # -- what ends it early

    def attempt(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step; what it raises is the answer."""
        try:
            step(*arguments)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Answer with an error. What is no ServiceError is a bug: logged with its trace, and a 500."""
        problem = error if isinstance(error, ServiceError) else ServiceError()
        log_failure(error, problem, self._request_id, PATH)
        self.refuse(problem)

    def refuse(self, error: ServiceError, *, body_is_here: bool = True) -> None:
        """Answer with a problem."""
        telemetry = self._service.telemetry
        if self._count:
            telemetry.images.labels(error.code).inc(self._count)
        count_refusal(telemetry, error)
        body = problem_body(error, self._request_id)
        self._end(error.status, header_lines(problem_fields(error)), body, body_is_here=body_is_here)
