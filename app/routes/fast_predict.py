"""The fast path of POST /predict, which small bodies take, and so most requests: top to bottom, on their connection.

    the whole request is here, there is room -> key? parameters? -> split -> decode -> batcher -> JSON -> connection

The steps are those of predict.py, which documents the route and takes what is large or comes slowly. What is left out:
a task, ASGI's messages, middleware, routing, dependencies. Nothing is awaited here unless threads decode: the batcher
calls back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import numpy as np

from app.batching.jobs import Outcome, Ticket
from app.errors import ClientGone, NotReady, QueueFull, ServiceError
from app.http.bodies import SMALL_BODY_BYTES, refuse_codings, split_images
from app.http.cached_headers import CachedHeader, RequestHead
from app.http.fast_connections import FastConnection
from app.http.parameters import BodyDeadline, Options
from app.http.problems import SECURITY_HEADERS, Headers, problem_answers, problem_body, problem_fields
from app.http.request_ids import request_id_of
from app.imaging import Decoded, Entry
from app.lifecycle import State
from app.predictor import Predictor
from app.routes.answers import compose, nothing_to_compute, readable
from app.routes.common import take_key
from app.routes.predict import PATH
from app.service import Service

log = logging.getLogger(__name__)

# After a turn of the event loop that turned somebody away it rests, so that what comes meanwhile is taken in one turn:
# a loop that wakes up for each request of an overload takes a core from the engine for longer than refusals need. The
# engine has its next batch already; rests being a small share of a batch's time, the one after that is in time, too.
REST_SHARE = 1 / 8
MAX_REST_S = 0.005

# So long it does not rest once anything else has come: what takes several turns, such as a probe, would see several.
AWAKE_S = 0.005


class FastPredict:
    """The fast path (`FastPath`) to a service."""

    path = PATH

    def __init__(self, service: Service) -> None:
        self.service = service
        self.max_body_bytes = min(SMALL_BODY_BYTES, service.settings.max_body_bytes)
        self.cached_header: CachedHeader | None = None
        self._refusal: ServiceError | None = None  # of this turn of the event loop
        self._refusal_answer: Callable[[str], bytes]
        self._turned_away = 0  # in this turn
        self._awake_until = 0.0  # a time.monotonic()

    def begin(self, connection: FastConnection, head: RequestHead, body: bytes, began: float) -> None:
        """Answer a request that began at `began`, a time.monotonic(), now or later."""
        request = FastRequest(self.service, connection, head, began)
        request.attempt(request.begin, body)

    def body_deadline(self, head: RequestHead) -> BodyDeadline:
        """Return how long a request's body may take."""
        settings = self.service.settings
        return head.parameters.body_deadline(settings.timeout_ms, settings.body_timeout_s)

    def refuse(
        self,
        connection: FastConnection,
        head: RequestHead,
        error: ServiceError,
        began: float,
        *,
        body_is_here: bool = True,
    ) -> None:
        """Answer a request that began at `began`, a time.monotonic(), with an error."""
        FastRequest(self.service, connection, head, began).refuse(error, body_is_here=body_is_here)

    def refusal_of_all(self) -> ServiceError | None:
        """Return the error that every request gets now, or None.

        While the service is not ready it asks nothing new: the usual way has the better reason.
        """
        if self._refusal is None and self.service.lifecycle.state is State.READY:
            try:
                self.service.refuse_if_full()
            except ServiceError as error:
                return error
        return self._refusal

    def immediate_refusal(self, head: RequestHead, error: ServiceError) -> bytes:
        """Return the whole answer to a request that is refused for what `refusal_of_all` returned.

        Every later request in this turn of the event loop gets the same error.
        """
        if self._refusal is None:
            self._refusal = error
            self._refusal_answer = problem_answers(error)
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._turned_away += 1
        request_id = request_id_of(head.given_id)
        if log.isEnabledFor(logging.DEBUG):
            seen = {"request_id": request_id, "route": PATH, "status": error.status}
            log.debug("POST %s %d at once id=%s", PATH, error.status, request_id, extra=seen)
        return self._refusal_answer(request_id)

    def stay_awake(self) -> None:
        """Do not rest for a moment: something else than a cached header has come."""
        self._awake_until = time.monotonic() + AWAKE_S

    def _end_turn(self) -> None:
        """Record whom this turn of the event loop turned away, and rest."""
        error, count = self._refusal, self._turned_away
        self._refusal, self._turned_away = None, 0
        assert error is not None
        self.service.telemetry.record_refusal(error.code, count)
        self.service.telemetry.record_answer(PATH, error.status, 0.0, count)
        if isinstance(error, QueueFull) and time.monotonic() >= self._awake_until:
            time.sleep(min(MAX_REST_S, REST_SHARE * error.batch_s))


class FastRequest:
    """One request on its way to its answer, and what it holds until then. It began at `began`, a time.monotonic()."""

    __slots__ = (
        "_began",
        "_connection",
        "_count",
        "_decode_s",
        "_decoded",
        "_head",
        "_options",
        "_predictor",
        "_release_key",
        "_request_id",
        "_service",
        "_ticket",
    )

    def __init__(self, service: Service, connection: FastConnection, head: RequestHead, began: float) -> None:
        self._service = service
        self._connection = connection
        self._began = began
        self._head = head
        self._request_id = request_id_of(head.given_id)
        self._release_key: Callable[[], None] | None = None
        self._ticket: Ticket | None = None
        self._count = 0  # of images that were admitted
        self._decode_s = 0.0
        self._decoded: list[Decoded] = []
        self._predictor: Predictor
        self._options: Options

    def attempt(self, step: Callable[..., None], *arguments: object) -> None:
        """Take a step; what it raises is the answer."""
        try:
            step(*arguments)
        except Exception as error:
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        """Answer with an error. What is no ServiceError is a bug: logged with its trace, and a 500."""
        if not isinstance(error, ServiceError):
            log.error("request %s failed", self._request_id, exc_info=error, extra=self._seen(ServiceError.status))
            error = ServiceError()
        elif error.status == ServiceError.status:  # the trace is the batch's, and so is its line in the log
            log.error("request %s failed with its batch", self._request_id, extra=self._seen(error.status))
        self.refuse(error)

    def begin(self, body: bytes) -> None:
        """Check the request, take its body apart and decode it. Raises ServiceError."""
        service, head, settings = self._service, self._head, self._service.settings
        self._release_key = take_key(service, head.key)
        head.parameters.check()
        predictor = self._predictor = service.require_predictor()
        self._options = head.parameters.resolve(len(predictor.classes), settings.timeout_ms, self._began)
        refuse_codings(head.codings)
        entries = split_images(head.content_type, body, settings.max_images, predictor.input_size)
        self._ticket = predictor.batcher.admit(len(entries), self._options.deadline)
        self._count = len(entries)
        began = time.perf_counter()
        decoded = predictor.decoder.decode_here(entries)
        if decoded is None:
            self._connection.start(self._decode_in_threads(entries, began))
        else:
            self._submit(decoded, began)

    async def _decode_in_threads(self, entries: list[Entry], began: float) -> None:
        """Decode what would hold up the event loop."""
        try:
            decoded = await self._predictor.decoder.decode_in_threads(entries, self._options.deadline)
        except asyncio.CancelledError:  # the drain's time is over
            self.refuse(NotReady())
        except Exception as error:
            self._fail(error)
        else:
            self.attempt(self._submit, decoded, began)

    def _submit(self, decoded: list[Decoded], began: float) -> None:
        """Queue the images that could be read."""
        self._decode_s = time.perf_counter() - began
        self._service.telemetry.decode_seconds.observe(self._decode_s)
        self._decoded = decoded
        images = readable(decoded)
        if not images:
            self._answer(nothing_to_compute(self._predictor))
            return
        assert self._ticket is not None
        batch = images[0][None] if len(images) == 1 else np.stack(images)
        job = self._predictor.batcher.submit(self._ticket, batch, self._options.deadline)
        self._connection.when_gone(job.abandon)
        job.future.add_done_callback(self._done)

    def _done(self, future: asyncio.Future[Outcome]) -> None:
        """Go on once the batcher has an answer, or none."""
        self._connection.when_gone(None)
        self.attempt(lambda: self._answer(future.result()))

    def _answer(self, outcome: Outcome) -> None:
        body, timing = compose(
            self._service.telemetry,
            self._predictor,
            self._decoded,
            outcome,
            top_k=self._options.top_k,
            decode_s=self._decode_s,
        )
        self._end(200, [(b"content-type", b"application/json"), (b"server-timing", timing.encode())], body)

    def refuse(self, error: ServiceError, *, body_is_here: bool = True) -> None:
        """Answer with a problem."""
        telemetry = self._service.telemetry
        if self._count:
            telemetry.images.labels(error.code).inc(self._count)
        if not isinstance(error, ClientGone):
            telemetry.record_refusal(error.code)
        headers = problem_fields(error)
        if not body_is_here:
            headers.append((b"connection", b"close"))  # the rest of it may still come
        self._end(error.status, headers, problem_body(error, self._request_id))

    def _end(self, status: int, headers: Headers, body: bytes) -> None:
        """Give back what is held, send the answer, and record it."""
        if self._ticket is not None:
            self._ticket.release()
        if self._release_key is not None:
            self._release_key()
            self._release_key = None
        headers += [
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self._request_id.encode()),
            *SECURITY_HEADERS,
        ]
        if self._service.lifecycle.state is not State.READY:
            headers.append((b"connection", b"close"))  # clients move to another instance before the port closes
        self._connection.send_answer(status, headers, body)
        seconds = time.monotonic() - self._began
        self._service.telemetry.record_answer(PATH, status, seconds)
        if log.isEnabledFor(logging.DEBUG):
            seen = self._seen(status) | {"seconds": seconds}
            log.debug("POST %s %d %.1f ms id=%s", PATH, status, seconds * 1000, self._request_id, extra=seen)

    def _seen(self, status: int) -> dict[str, object]:
        """Return what the log says of this request."""
        return {"request_id": self._request_id, "route": PATH, "status": status}
