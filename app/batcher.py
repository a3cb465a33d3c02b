"""Collects images from many requests into batches for one engine. Knows no torch and no HTTP.

Batch-when-free: an idle engine takes what is queued at once; while it runs, the next batch grows, and the engine's
thread takes it as it is then, without a pause in which the event loop would have to hand it over. Only where those who
are answered come back at once, a batch that is not full waits for them (app/batching/returns.py). Images are counted,
not requests: a large request is split over several batches, small ones share one.
The queue is bounded, by images and by time: what would not be done by its deadline is refused at once, and what is
expired or abandoned is dropped when a batch begins, before it costs the engine anything. If the engine or the loop
itself dies, everything waiting fails at once and `on_fatal` is told.
The engine can be exchanged between two batches, and only when no request is answered in part: all images of a request
are computed by one engine, whose name and version its outcome carries.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from app.batching.admission import Load, require_room
from app.batching.batches import (
    Batch,
    Computed,
    EngineBroken,
    EngineOutOfMemory,
    Run,
    Slice,
    compute,
    count_of,
    in_halves,
    together,
)
from app.batching.jobs import Images, Job, ModelName, Probabilities, Ticket
from app.batching.returns import Returns
from app.errors import DeadlinePassed, EngineFailed, ServiceError
from app.threads import Worker

log = logging.getLogger(__name__)

MAX_CONSECUTIVE_FAILURES = 3

# An engine that is quicker has the next batch as soon as the event loop is free: handed over bit by bit, batches of one
# or two images would cost more than the pauses do.
HAND_OVER_S = 0.002

# A request that waits for a batch to fill up keeps so much of its time for being computed, or what two batches take.
SHARE_TO_COMPUTE = 0.1


@dataclass(frozen=True, slots=True)
class Swap:
    """An engine that is to take over; `done` once it has."""

    run: Run
    model: ModelName
    done: asyncio.Future[None]


class Batcher:
    """The queue and the task that empties it. Everything but the engine's work happens on the event loop.

    `run` maps uint8 (N, 3, S, S) to float32 (N, classes), 1 <= N <= max_batch, and is called in one thread of its
    own; `model` is its name and version. `on_batch(images, seconds)` is told of each finished batch, `on_fatal(reason)`
    of the end of it all.
    """

    def __init__(
        self,
        run: Run,
        model: ModelName,
        *,
        max_batch: int,
        max_queue_images: int,
        max_queue_s: float = math.inf,
        max_wait_s: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda _images, _seconds: None,
        on_fatal: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._run = run
        self.model = model
        self.max_batch = max_batch
        self.max_queue_images = max_queue_images
        self.max_queue_s = max_queue_s
        self.max_wait_s = max_wait_s
        self._on_batch = on_batch
        self._on_fatal = on_fatal
        self.queued_images = 0
        self._jobs: deque[Job] = deque()
        self._waiting_images = 0
        self._batches: deque[Batch] = deque()
        self._running_images = 0
        self._swap: Swap | None = None
        self._progress = time.monotonic()
        self._images_per_s = 0.0
        self._batch_s = 0.0  # what the last batch took
        self._failures = 0
        self._returns = Returns()
        self._changed = asyncio.Event()
        self._worker = Worker("engine")
        self._task: asyncio.Task[None] | None = None
        self._dead = False

    # -- for requests

    def require_room(self, count: int, deadline: float) -> None:
        """Raise what `app.batching.admission.require_room` raises, or EngineFailed if the engine is dead."""
        if self._dead:
            raise EngineFailed
        require_room(self.load, count, deadline, max_queue_images=self.max_queue_images, max_queue_s=self.max_queue_s)

    @property
    def load(self) -> Load:
        """What the engine has to do."""
        return Load(self.queued_images, self._running_images, self._images_per_s, self.max_batch)

    def admit(self, count: int, deadline: float) -> Ticket:
        """Reserve places for `count` images that are wanted by `deadline`. Raises what `require_room` raises."""
        self.require_room(count, deadline)
        self.queued_images += count
        return Ticket(self._free_places, count)

    def submit(self, ticket: Ticket, images: Images, deadline: float) -> Job:
        """Queue uint8 (N, 3, S, S), 1 <= N <= the ticket's places; `deadline` is a time.monotonic()."""
        if self._dead:
            raise EngineFailed
        ticket.give_back(ticket.places - len(images))
        job = Job(images, ticket, deadline)
        if not self._jobs and not self._batches:
            self._progress = job.enqueued
        self._jobs.append(job)
        self._waiting_images += len(images)
        self._returns.came(len(images), job.enqueued)
        if self._batches:
            self._hand_over()
        else:
            self._changed.set()
        return job

    def _free_places(self, count: int) -> None:
        self.queued_images -= count

    # -- life

    @property
    def alive(self) -> bool:
        """Whether the loop runs."""
        return self._task is not None and not self._dead

    def stalled_s(self) -> float:
        """Return for how many seconds there has been work and no progress: no batch was formed, and none ended."""
        return time.monotonic() - self._progress if self._jobs or self._batches else 0.0

    def start(self) -> None:
        """Start the loop."""
        self._task = asyncio.get_running_loop().create_task(self._loop(), name="batcher")
        self._task.add_done_callback(self._ended)

    async def swap(self, run: Run, model: ModelName) -> None:
        """Let another engine compute all batches from the next possible one on; returns once it does.

        The old one has ended its last batch by then. One swap at a time. Raises EngineFailed if the loop ends first.
        """
        if self._dead:
            raise EngineFailed
        self._swap = swap = Swap(run, model, asyncio.get_running_loop().create_future())
        self._changed.set()
        try:
            await swap.done
        finally:
            self._swap = None

    async def close(self) -> None:
        """Stop the loop; what still waits fails with EngineFailed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._worker.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Fail everything that waits, whatever ended the loop, and report the end unless it was asked for."""
        self._dead = True
        for batch in self._batches:
            batch.result.cancel()
        for job in [*(job for batch in self._batches for job, _ in batch.slices), *self._jobs]:
            job.fail(EngineFailed())
        self._jobs.clear()
        self._batches.clear()
        if self._swap is not None and not self._swap.done.done():
            self._swap.done.set_exception(EngineFailed())
        if not task.cancelled():
            error = task.exception()
            log.error("the batcher has ended", exc_info=error)
            self._on_fatal(f"the engine or its batcher died: {type(error).__name__}")

    # -- the loop

    async def _loop(self) -> None:
        while True:
            while not self._jobs and self._swap is None:
                self._changed.clear()
                await self._changed.wait()
            if self._swap is not None and not self._head_is_begun():
                self._apply(self._swap)
                continue
            if self.max_wait_s:
                await self._let_it_fill()
            self._start_batch(self._form_batch(self.max_batch))
            while self._batches:
                self._hand_over()
                await self._finish_batch(self._batches[0])
                self._batches.popleft()
                self._begin_batch()
                self._progress = time.monotonic()
            await self._await_returns()

    def _head_is_begun(self) -> bool:
        """Whether a request is answered in part; only the first one in the queue ever is."""
        return bool(self._jobs and self._jobs[0].taken)

    def _apply(self, swap: Swap) -> None:
        self._swap = None
        if swap.done.cancelled():
            return
        self._run, self.model, self._failures = swap.run, swap.model, 0
        swap.done.set_result(None)

    async def _await_returns(self) -> None:
        """Wait for those who have just been answered, if they come back at once, or until a batch is full."""
        images, until = self._returns.awaited()
        wanted = min(self.max_batch, self._waiting_images + images)
        if images and wanted > 1 and not self.max_wait_s:
            await self._wait_until(lambda: self._waiting_images >= wanted or self._swap is not None, until)

    async def _let_it_fill(self) -> None:
        """Wait until a batch is full, its oldest image has waited long enough, or one has just the time for a batch."""
        while True:
            waiting = [job for job in self._jobs if not job.future.done()]
            full = sum(job.untaken for job in waiting) >= self.max_batch
            latest = min((self._latest_start(job) for job in waiting), default=0.0)
            if full or latest <= time.monotonic():
                return
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(latest - time.monotonic()):
                    await self._changed.wait()

    def _latest_start(self, job: Job) -> float:
        """Return until when a request may wait for others and still be answered, as a time.monotonic()."""
        needed = max(2 * self._batch_s, SHARE_TO_COMPUTE * (job.deadline - job.enqueued))
        return min(job.enqueued + self.max_wait_s, job.deadline - needed)

    async def _wait_until(self, enough: Callable[[], bool], latest: float) -> None:
        """Wait for more in the queue, until there is enough of it or time.monotonic() is `latest`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(latest - time.monotonic()):
                while not enough():
                    self._changed.clear()
                    await self._changed.wait()

    def _form_batch(self, room: int) -> list[Slice]:
        """Take up to `room` images off the queue, dropping what has expired or was abandoned.

        While an engine waits to take over, only the request that is answered in part is gone on with.
        """
        now = time.monotonic()
        batch: list[Slice] = []
        while self._jobs and room and (self._swap is None or self._head_is_begun()):
            job = self._jobs[0]
            if job.future.done() or job.deadline <= now:
                job.fail(DeadlinePassed())
                job.ticket.release()
                self._jobs.popleft()
                self._waiting_images -= job.untaken
                continue
            count = min(room, job.untaken)
            batch.append((job, job.images[job.taken : job.taken + count]))
            job.taken += count
            self._waiting_images -= count
            room -= count
            if job.taken == len(job.images):
                self._jobs.popleft()
        return batch

    def _hand_over(self) -> None:
        """Put what waits into the batch that the engine's thread comes to next, unless an engine waits to take over.

        With a time to fill up, for quick engines, and where others are expected back, only what fills one.
        """
        at_once = self._batch_s >= HAND_OVER_S and not self.max_wait_s and not self._returns.expected
        enough = 1 if at_once else self.max_batch
        while self._waiting_images >= enough and self._swap is None:
            last = self._batches[-1]
            room = last.room(self.max_batch)
            if last.open and not room:
                return
            slices = self._form_batch(room or self.max_batch)
            if not (room and last.add(slices)):  # the thread has begun it
                self._start_batch(slices)
            elif last is self._batches[0]:
                self._run_soon(slices)

    def _start_batch(self, slices: list[Slice]) -> None:
        """Let the engine's thread compute a batch, after those that it has."""
        if not slices:
            return
        batch = Batch(slices)
        batch.result = self._worker.run(batch.begin, self._run)
        self._batches.append(batch)
        if len(self._batches) == 1:
            self._progress = time.monotonic()
            self._begin_batch()

    def _begin_batch(self) -> None:
        """Free the places of the batch that the engine has come to, if there is one."""
        self._running_images = 0
        if self._batches:
            self._run_soon(self._batches[0].slices)

    def _run_soon(self, slices: list[Slice]) -> None:
        """Free the places of what is computed now."""
        for job, images in slices:
            job.ticket.give_back(len(images))
            self._running_images += len(images)

    async def _finish_batch(self, batch: Batch) -> None:
        """Wait for a batch and hand out its answers. Raises EngineBroken if there is no point in going on."""
        try:
            computed = await self._result(batch)
        except EngineOutOfMemory:
            log.warning("out of memory for a batch of %d, also in halves", count_of(batch.slices))
            _fail(batch, EngineFailed())
            return
        except EngineBroken:
            raise
        except Exception as error:
            self._failures += 1
            log.exception("a batch of %d failed", count_of(batch.slices))
            _fail(batch, ServiceError())
            if self._failures >= MAX_CONSECUTIVE_FAILURES:
                raise EngineBroken(f"{self._failures} batches failed in a row") from error
            return
        if computed.probabilities is not None:  # a batch that nobody waited for any more tells nothing of the engine
            self._failures = 0
            self._hand_out(computed.slices, computed.probabilities, computed.seconds)

    async def _result(self, batch: Batch) -> Computed:
        """Wait for the engine; out of memory, try two halves once."""
        try:
            return await batch.result
        except EngineOutOfMemory:
            halves = in_halves(batch.slices)
            if not all(halves):
                raise
            log.warning("out of memory for a batch of %d: trying two halves", count_of(batch.slices))
            return together([await self._worker.run(compute, self._run, half) for half in halves])

    def _hand_out(self, slices: list[Slice], probabilities: Probabilities, seconds: float) -> None:
        """Give float64 (N, classes) to those who wait, and learn from the time it took."""
        count = len(probabilities)
        each_s = seconds / count
        # A queue is worked off in full batches, whose rate is the best one. What does better than they are known to do
        # counts, too: as long as the engine is thought to be too slow, no full batch may be let in.
        if count == self.max_batch or 0 < each_s * self._images_per_s < 1:
            # The mean of the times, not of the rates: a few fast batches must not hide the slow ones between them.
            self._images_per_s = 1 / (0.9 / self._images_per_s + 0.1 * each_s) if self._images_per_s else 1 / each_s
        self._batch_s = seconds
        self._on_batch(count, seconds)
        now = time.monotonic()
        started = now - seconds
        self._returns.batch_ended(sum(len(images) for job, images in slices if not job.untaken), seconds, now)
        at = 0
        timed: Job | None = None
        for job, images in slices:
            job.started = job.started or max(started, job.enqueued)
            spent_s = 0.0 if job is timed else seconds  # one batch, in however many slices it has this request
            job.answer(probabilities[at : at + len(images)], self.model, spent_s)
            timed = job
            at += len(images)


def _fail(batch: Batch, error: ServiceError) -> None:
    for job, _ in batch.slices:
        job.fail(error)
