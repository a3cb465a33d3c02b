"""What an overload costs the event loop: requests are refused before anything else is made of them, and it rests.

After a turn of the event loop that turned somebody away, and the next one, it rests, so that what comes meanwhile is
taken in one turn: a loop that wakes up for each request of an overload takes a core from the engine for longer than
refusals need. The engine has its next batch already; rests being a small share of a batch's time, the one after that
is in time, too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from app.errors import QueueFull, ServiceError
from app.http.cached_headers import RequestHead
from app.http.problems import problem_answers
from app.http.request_ids import request_id_of
from app.lifecycle import State
from app.routes.crowd import Crowd
from app.routes.predict import PATH
from app.service import Service

log = logging.getLogger(__name__)

# Of a batch's time.
REST_SHARE = 1 / 8
MAX_REST_S = 0.005

# So long it does not rest once anything else has come: what takes several turns, such as a probe, would see several.
AWAKE_S = 0.005


class OverloadRefusals:
    """The fast path's refusals while a service has no room for one more image.

    Once a request was refused, all others of that turn of the event loop are, with the same error, and are counted at
    its end.
    """

    def __init__(self, service: Service, crowd: Crowd) -> None:
        self._service = service
        self._crowd = crowd
        self._refusal: ServiceError | None = None  # of this turn of the event loop
        self._refusal_answer: Callable[[str], bytes]
        self._turned_away = 0  # in this turn
        self._awake_until = 0.0  # a time.monotonic()

    def refusal_of_all(self) -> ServiceError | None:
        """Return the error that every request gets now, or None.

        While the service is not ready it asks nothing new: the usual way has the better reason.
        """
        if self._refusal is None and self._service.lifecycle.state is State.READY:
            try:
                self._service.refuse_if_full(1 + len(self._crowd))
            except ServiceError as error:
                return error
        return self._refusal

    def immediate_refusal(self, head: RequestHead, error: ServiceError) -> bytes:
        """Return the whole answer to a request that is refused for what `refusal_of_all` returned."""
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
        """Do not rest for AWAKE_S: something else than a request with a cached header has come."""
        self._awake_until = time.monotonic() + AWAKE_S

    def _end_turn(self) -> None:
        """Record the requests that this turn of the event loop turned away, and rest after the next one."""
        error, count = self._refusal, self._turned_away
        self._refusal, self._turned_away = None, 0
        assert error is not None
        self._service.telemetry.record_refusal(error.code, count)
        self._service.telemetry.record_answer(PATH, error.status, 0.0, count)
        if isinstance(error, QueueFull):
            # Not at once: a connection that was accepted in this turn is made in the next one, and says so.
            asyncio.get_running_loop().call_soon(self._rest, min(MAX_REST_S, REST_SHARE * error.batch_s))

    def _rest(self, seconds: float) -> None:
        if time.monotonic() >= self._awake_until and not self._crowd:
            time.sleep(seconds)
