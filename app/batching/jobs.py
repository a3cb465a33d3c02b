"""What a request holds on its way through the batcher: its places in the queue, its images, its outcome."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from app.errors import ClientGone, DeadlinePassed, ServiceError

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float64]
ModelIdentity = dict[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A request's probabilities, float64 (N, classes), the model that computed all of them, and where time went.

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

    `future` has the outcome, or raises DeadlinePassed at the deadline, ClientGone when abandoned, or what failed.
    """

    __slots__ = (
        "_answers",
        "_finished",
        "_timer",
        "count",
        "deadline",
        "enqueued",
        "future",
        "images",
        "inference_s",
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
        loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Outcome] = loop.create_future()
        self.future.add_done_callback(self._ended)
        self._timer = loop.call_later(max(0.0, deadline - self.enqueued), self._expire)
        self._answers: list[Probabilities] = []
        self._finished = 0

    @property
    def untaken(self) -> int:
        """How many images no batch has taken yet."""
        return self.count - self.taken

    def _ended(self, _future: asyncio.Future[Outcome]) -> None:
        """Give back places and images; the job may still be in the queue, if an engine hangs."""
        self._timer.cancel()
        self.ticket.release()
        self.images = self.images[:0].copy()

    def _expire(self) -> None:
        self.fail(DeadlinePassed())

    def fail(self, error: ServiceError) -> None:
        """End the job with an error, unless it has ended already."""
        if not self.future.done():
            self.future.set_exception(error)

    def abandon(self) -> None:
        """End the job because its client has gone."""
        self.fail(ClientGone())

    def answer(self, probabilities: Probabilities, model: ModelIdentity, inference_s: float) -> None:
        """Take the probabilities of the next images, in order; the last ones complete the outcome.

        The batcher changes the model only between jobs, so that `model` is the same for all of one job's images.
        """
        self._answers.append(probabilities)
        self._finished += len(probabilities)
        self.inference_s += inference_s
        if self._finished == self.count and not self.future.done():
            every = self._answers[0] if len(self._answers) == 1 else np.concatenate(self._answers)
            queue_s = (self.started or self.enqueued) - self.enqueued
            self.future.set_result(Outcome(every, model, queue_s, self.inference_s))
