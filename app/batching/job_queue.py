"""The jobs that wait for a batch, first come, first served; counted in images."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator

from app.batching.batches import Slice
from app.batching.jobs import Job
from app.errors import DeadlinePassed

# Fewer jobs are not worth a look through them all.
TIDY_FROM = 64


class JobQueue:
    """Jobs in the order in which they came, and `images`, how many of theirs no batch has taken yet.

    What has ended may still be among them, but not many more than what has not, or TIDY_FROM: an engine that hangs
    takes nothing off, while requests come, give up, and leave their places to others.
    """

    def __init__(self) -> None:
        self._jobs: deque[Job] = deque()
        self._tidy_at = TIDY_FROM
        self.images = 0

    def __bool__(self) -> bool:
        return bool(self._jobs)

    def __iter__(self) -> Iterator[Job]:
        return iter(self._jobs)

    @property
    def head_is_begun(self) -> bool:
        """Whether a request is answered in part; only the first one ever is."""
        return bool(self._jobs and self._jobs[0].taken)

    def append(self, job: Job) -> None:
        """Add a job."""
        if len(self._jobs) >= self._tidy_at:
            self._drop_ended()
        self._jobs.append(job)
        self.images += job.untaken

    def _drop_ended(self) -> None:
        """Remove finished jobs. Runs again once the queue has doubled: amortised O(1)."""
        self._jobs = deque(job for job in self._jobs if not job.done)
        self._tidy_at = max(TIDY_FROM, 2 * len(self._jobs))
        self.images = sum(job.untaken for job in self._jobs)

    def take(self, room: int, *, head_only: bool = False) -> list[Slice]:
        """Take up to `room` images off the queue, dropping what has expired or was abandoned.

        With `head_only`, only from the request that is answered in part.
        """
        now = time.monotonic()
        slices: list[Slice] = []
        while self._jobs and room and (self.head_is_begun or not head_only):
            job = self._jobs[0]
            if job.done or job.deadline <= now:
                job.fail(DeadlinePassed())
                job.ticket.release()
                self._jobs.popleft()
                self.images -= job.untaken
                continue
            count = min(room, job.untaken)
            slices.append((job, job.images[job.taken : job.taken + count]))
            job.taken += count
            self.images -= count
            room -= count
            if not job.untaken:
                self._jobs.popleft()
        return slices

    def clear(self) -> None:
        """Remove all jobs."""
        self._jobs.clear()
        self.images = 0
