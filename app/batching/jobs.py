"""What a request holds on its way through the batcher: its places in the queue, its images, its outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import isnan

import numpy as np
from numpy.typing import NDArray

from app.errors import ClientGone, DeadlinePassed, ServiceError

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float64]
ModelIdentity = dict[str, str]

NO_IMAGES: Images = np.empty((0, 3, 0, 0), np.uint8)


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's probabilities, float64 (N, classes), the model that computed all of them, and where time went.

    An image that the engine has no answer for has NaN in place of them; not all of a request's have.
    `queue_s` is how long it waited, `inference_s` how long its batches were computed, without what was beside the end
    of another one.
    """

    probabilities: Probabilities
    model: ModelIdentity
    queue_s: float
    inference_s: float


class Ticket:
    """A request's right to `places` in the queue; given back by `release`, or as images enter a batch."""

    __slots__ = ("_free", "places")

    def __init__(self, free: Callable[[int], None], places: int) -> None:
        self._free = free
        self.places = places

    def give_back(self, places: int) -> None:
        """Free some of the places."""
        places = min(places, self.places)
        if places:
            self.places -= places
            self._free(places)

    def hand_over(self) -> None:
        """Hold no places any more, without freeing them: the engine process counts them from here on."""
        self.places = 0

    def release(self) -> None:
        """Free all places that are still held. Safe to call again."""
        self.give_back(self.places)


class Job:
    """One request's images on their way through the queue.

    It ends once, on the event loop: with an outcome, or with DeadlinePassed at the deadline, ClientGone when abandoned,
    or what failed. Who waits is called back, or awaits the `future`, which is made for who asks for it.
    """

    __slots__ = (
        "_answers",
        "_callbacks",
        "_finished",
        "_future",
        "_loop",
        "_timer",
        "count",
        "deadline",
        "done",
        "enqueued",
        "error",
        "images",
        "inference_s",
        "outcome",
        "started",
        "taken",
        "ticket",
    )

    def __init__(self, images: Images, ticket: Ticket, deadline: float) -> None:
        self.images = images
        self.count = len(images)
        self.ticket = ticket
        self.deadline = deadline
        self.enqueued = time.monotonic()
        self.started: float | None = None
        self.taken = 0
        self.inference_s = 0.0
        self.done = False
        self.outcome: Outcome | None = None
        self.error: ServiceError | None = None
        self._loop = asyncio.get_running_loop()
        self._callbacks: list[Callable[[Job], None]] = []
        self._future: asyncio.Future[Outcome] | None = None
        self._timer = self._loop.call_later(max(0.0, deadline - self.enqueued), self._expire)
        self._answers: list[Probabilities] = []
        self._finished = 0

    @property
    def untaken(self) -> int:
        """How many images no batch has taken yet."""
        return self.count - self.taken

    def when_ended(self, callback: Callable[[Job], None]) -> None:
        """Have the event loop call `callback` once it has ended, in the next turn if it has: as a future does."""
        if self.done:
            self._loop.call_soon(callback, self)
        else:
            self._callbacks.append(callback)

    @property
    def future(self) -> asyncio.Future[Outcome]:
        """Has the outcome, or raises the error; the job is abandoned if it is cancelled."""
        if self._future is None:
            self._future = self._loop.create_future()
            self._future.add_done_callback(self._future_done)
            self._settle()
        return self._future

    def _future_done(self, future: asyncio.Future[Outcome]) -> None:
        if future.cancelled():
            self.abandon()

    def _settle(self) -> None:
        future = self._future
        if future is None or future.done() or not self.done:
            return
        if self.error is not None:
            future.set_exception(self.error)
        elif self.outcome is not None:
            future.set_result(self.outcome)

    def _expire(self) -> None:
        self.fail(DeadlinePassed())

    def fail(self, error: ServiceError) -> None:
        """End the job with an error, unless it has ended already."""
        if not self.done:
            self.error = error
            self._end()

    def abandon(self) -> None:
        """End the job because its client has gone."""
        self.fail(ClientGone())

    def answer(self, probabilities: Probabilities, model: ModelIdentity, inference_s: float) -> None:
        """Take the probabilities of the next images, in order; the last ones complete the outcome, NaN alone an error.

        The batcher changes the model only between jobs, so that `model` is the same for all of one job's images.
        """
        self._answers.append(probabilities)
        self._finished += len(probabilities)
        self.inference_s += inference_s
        if self._finished == self.count:
            every = self._answers[0] if len(self._answers) == 1 else np.concatenate(self._answers)
            if isnan(every[0, 0]) and np.isnan(every).all():
                self.fail(ServiceError())
                return
            queue_s = (self.started or self.enqueued) - self.enqueued
            self.succeed(Outcome(every, model, queue_s, self.inference_s))

    def succeed(self, outcome: Outcome) -> None:
        """End the job with its outcome, unless it has ended already."""
        if not self.done:
            self.outcome = outcome
            self._end()

    def _end(self) -> None:
        """Give back places and images, for the job may still be in the queue, if an engine hangs; tell who waits."""
        self.done = True
        self._timer.cancel()
        self.ticket.release()
        self.images = NO_IMAGES
        self._answers = []
        self._settle()
        for callback in self._callbacks:
            self._loop.call_soon(callback, self)
        self._callbacks = []  # they lead back here
