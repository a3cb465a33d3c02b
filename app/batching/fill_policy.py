"""How long a batch that is not full waits for more images, and how many are handed over while the engine computes.

Decides, and changes nothing: app/batcher.py acts on it. Times are those of time.monotonic().
"""

from __future__ import annotations

from typing import NamedTuple

from app.batching.admission import seconds_for
from app.batching.batches import Slice, count_of
from app.batching.engine_pace import EnginePace
from app.batching.job_queue import JobQueue
from app.batching.jobs import Job
from app.batching.returning_clients import ReturningClients

# An engine that is quicker has the next batch as soon as the event loop is free: handed over bit by bit, batches of one
# or two images would cost more than the pauses do.
TOP_UP_MIN_BATCH_S = 0.002

# A request that waits for a batch to fill up keeps this share of its time for being computed, or what two batches take:
# full ones, which it may be in, or such as the last one, if that took longer.
SHARE_TO_COMPUTE = 0.1


class WaitLimits(NamedTuple):
    """Until when a batch waits for more images, 0.0 for not at all, and how many queued images end that before."""

    deadline: float
    images: int


class FillPolicy:
    """The rules for batches of up to `max_batch` images, and what they have learned from requests and batches.

    With a `max_wait_s`, a batch that is not full waits that long; without one, only for clients that come back at once.
    `guessed_images_per_s` is what the engine may do in full batches, 0 if unknown.
    """

    def __init__(self, max_batch: int, max_wait_s: float, guessed_images_per_s: float) -> None:
        self.max_batch = max_batch
        self.max_wait_s = max_wait_s
        self.pace = EnginePace(guessed_images_per_s)
        self.returning = ReturningClients()

    def batch_ended(self, slices: list[Slice], seconds: float, now: float) -> None:
        """Learn from the `seconds` that a batch took, which ended at `now`, once its requests have their answers."""
        count = count_of(slices)
        self.pace.batch_ended(count, seconds, full=count == self.max_batch)
        self.returning.batch_ended(sum(len(images) for job, images in slices if job.done), seconds, now)

    def wait_limits(self, jobs: JobQueue) -> WaitLimits:
        """Return how long the next batch waits for more images. Every request keeps the time to be computed."""
        if self.max_wait_s:
            waiting = [job for job in jobs if not job.done]
            if not waiting or sum(job.untaken for job in waiting) >= self.max_batch:
                return WaitLimits(0.0, 1)
            return WaitLimits(min(waiting[0].enqueued + self.max_wait_s, *map(self.latest_start, waiting)), 1)
        missing, until = self.returning.awaited()
        enough = min(self.max_batch, jobs.images + missing)
        if jobs.images >= enough:
            return WaitLimits(0.0, enough)
        return WaitLimits(min([until, *(self.latest_start(job) for job in jobs if not job.done)]), enough)

    def latest_start(self, job: Job) -> float:
        """Return until when a request may wait for others and still be answered in time."""
        batch_s = max(self.pace.batch_s, seconds_for(self.max_batch, self.pace.images_per_s))
        needed = max(2 * batch_s, SHARE_TO_COMPUTE * (job.deadline - job.enqueued))
        return job.deadline - needed

    @property
    def least_to_hand_over(self) -> int:
        """How many queued images are handed to an engine's thread while it computes, at least.

        Only what fills a batch where there is a `max_wait_s`, for quick engines, and where others are expected back.
        """
        at_once = self.pace.batch_s >= TOP_UP_MIN_BATCH_S and not self.max_wait_s and not self.returning.expected
        return 1 if at_once else self.max_batch
