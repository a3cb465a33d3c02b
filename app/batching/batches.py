"""What an engine's thread does with one batch, and what comes of it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from app.batching.jobs import Images, Job, ModelIdentity, Probabilities
from app.batching.turns import Turn
from app.engine_errors import EngineOutOfMemory, memory_errors_classified
from app.errors import EngineFailed, ServiceError

log = logging.getLogger(__name__)

DECIMALS = 6  # of probabilities in answers

Slice = tuple[Job, Images]
Run = Callable[..., NDArray[np.float32]]
"""An engine's `run`; `nearly_done` is left out where nothing overlaps (app/engine.py)."""


@dataclass(slots=True)
class Computed:
    """What became of a batch: the slices that somebody still waited for, their probabilities, and the time they took.

    `probabilities` is float64 (N, classes), rounded as answers have them, or None if there were no such slices; NaN for
    images that the engine has no answer for. The time beside the end of another batch is that one's.
    """

    slices: list[Slice]
    probabilities: Probabilities | None
    seconds: float

    def deliver(self, model: ModelIdentity, ended: float) -> None:
        """Give the requests their probabilities, on the event loop; `ended` is when, as a time.monotonic()."""
        if self.probabilities is None:
            return
        at = 0
        timed: Job | None = None
        for job, images in self.slices:
            job.started = job.started or max(ended - self.seconds, job.enqueued)
            spent_s = 0.0 if job is timed else self.seconds  # one batch, in however many slices it has this request
            job.answer(self.probabilities[at : at + len(images)], model, spent_s)
            timed = job
            at += len(images)


class Batch:
    """Slices of requests that an engine's thread has, or will come to; until then it takes more.

    The thread closes it when it begins, so that it waits for nobody between two batches and leaves nobody behind.
    """

    def __init__(self, slices: list[Slice]) -> None:
        self.slices = slices
        self.image_shape = slices[0][1].shape[1:] if slices else ()
        self.count = count_of(slices)
        self.turn = Turn()
        self.result: asyncio.Future[Computed]
        self.is_handed_out = False
        self._open = True
        self._full: int | None = None
        self._lock = threading.Lock()

    def follow(self, before: Batch, *, full: int) -> None:
        """Have it begin after another one, or beside that one's end with `full` images, in another thread."""
        self._full = full
        self.turn.is_full = self.count >= full
        self.turn.follow(before.turn)

    def room(self, most: int) -> int | None:
        """Return how many images it takes until it has `most`, or None if the thread has begun; `add` asks again."""
        return max(0, most - self.count) if self._open else None

    def add(self, slices: list[Slice]) -> bool:
        """Take more, and return True, unless the thread has begun."""
        with self._lock:
            if self._open:
                self.slices = [*self.slices, *slices]
                self.count += count_of(slices)
                if self._full is not None and self.count >= self._full:
                    self.turn.fill()
            return self._open

    def compute_in_turn(self, run: Run, overlaps: bool = False) -> Computed:
        """Close it when it is its turn, and compute; in an engine's thread. Raises what `run` raises.

        With `overlaps` the next one may begin beside the end of this one.
        """
        try:
            self.turn.wait()
            computed = self._close_and_compute(run, self.turn.pass_on_early if overlaps else None)
            computed.seconds = self.turn.own_seconds(computed.seconds)
            return computed
        finally:
            self.turn.end()

    def _close_and_compute(self, run: Run, nearly_done: Callable[[], None] | None) -> Computed:
        """Close it and compute; where memory is lacking in two halves, before the next one unless that has begun."""
        with self._lock:
            self._open = False
        try:
            return compute(run if nearly_done is None else partial(run, nearly_done=nearly_done), self.slices)
        except EngineOutOfMemory:
            halves = in_halves(self.slices)
            if not all(halves):
                raise
        # Here, with the error and what it held gone.
        log.warning("out of memory for a batch of %d: trying two halves", self.count)
        return joined([compute(run, half) for half in halves])

    def fail(self, error: ServiceError) -> None:
        """End all its requests with an error, on the event loop, unless they have ended already."""
        for job, _ in self.slices:
            job.fail(error)

    def fail_by(self, error: Exception) -> None:
        """Log what the engine raised, and end all its requests: with 503 if memory was lacking, else with 500."""
        if isinstance(error, EngineOutOfMemory):
            log.warning("out of memory for a batch of %d, also in halves", self.count)
            self.fail(EngineFailed())
        else:
            log.error("a batch of %d failed", self.count, exc_info=error)
            self.fail(ServiceError())


def compute(run: Run, slices: list[Slice]) -> Computed:
    """Run the engine on what is still waited for.

    Images may have no finite answer where the engine works, in float16 for one, and then spoil that of no other image.
    Whether it works, where no image of a batch has one, a black image says: no client may end the service by sending
    the same picture again and again, and an engine that has no finite answers any more must.

    Raises RuntimeError if its answers cannot be right, EngineOutOfMemory, and what `run` raises.
    """
    started = time.monotonic()
    wanted = [(job, images) for job, images in slices if not job.done and job.deadline > started]
    if not wanted:
        return Computed([], None, 0.0)
    parts = [images for _, images in wanted]
    with memory_errors_classified():
        images = parts[0] if len(parts) == 1 else np.concatenate(parts)
        probabilities = run(images).astype(np.float64).round(DECIMALS)  # for the whole batch, off the event loop
    seconds = time.monotonic() - started
    if len(probabilities) != len(images):
        raise RuntimeError("the engine returned the wrong number of answers")
    if np.isfinite(probabilities).all():
        return Computed(wanted, probabilities, seconds)
    finite = np.isfinite(probabilities).all(axis=1)
    if not finite.any():
        black_answer(run, images.shape[1:])
    log.error("no finite answer for %d images in a batch of %d: none is given", (~finite).sum(), len(images))
    probabilities[~finite] = np.nan
    return Computed(wanted, probabilities, seconds)


def black_answer(run: Run, image_shape: tuple[int, ...]) -> Probabilities:
    """Return the probabilities of a black image of `image_shape` (3, S, S), float64 (1, classes).

    Raises RuntimeError if they cannot be right, EngineOutOfMemory, and what `run` raises.
    """
    with memory_errors_classified():
        answer = run(np.zeros((1, *image_shape), np.uint8)).astype(np.float64)
    if len(answer) != 1 or not np.isfinite(answer).all():
        raise RuntimeError("the engine has no finite answer for a black image")
    return answer


def count_of(slices: list[Slice]) -> int:
    """Return the number of images."""
    return sum(len(images) for _, images in slices)


def in_halves(slices: list[Slice]) -> tuple[list[Slice], list[Slice]]:
    """Divide a batch; of a single image the first half is nothing."""
    each = [(job, images[i : i + 1]) for job, images in slices for i in range(len(images))]
    middle = len(each) // 2
    return each[:middle], each[middle:]


def joined(parts: list[Computed]) -> Computed:
    """Put the parts of a divided batch together."""
    known = [part.probabilities for part in parts if part.probabilities is not None]
    slices = [job_slice for part in parts for job_slice in part.slices]
    return Computed(slices, np.concatenate(known) if known else None, sum(part.seconds for part in parts))
