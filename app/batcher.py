"""Collects images from many requests into batches for one engine. Knows no torch, and of HTTP only what errors carry.

Batch-when-free: an idle engine takes what is queued at once, unless clients that were just answered are about to come
back or a `max_wait_s` has it wait (fill_policy.py); while it runs, the next batch grows, and the engine's thread takes
it as it is then, without a pause in which the event loop would have to hand it over. How large a batch
becomes is decided in app/batching/fill_policy.py. An engine that overlaps batches has two threads, which take turns: a
full batch begins when the one before is nearly done, where parts of the engine would have nothing to do.
Images are counted, not requests: a large request is split over several batches, small ones share one.
The queue is bounded, by images and by time: what would not be done by its deadline is refused at once, and what is
expired or abandoned is dropped when a batch begins, before it costs the engine anything. If the engine or the loop
itself dies, everything waiting fails at once and `on_fatal` is called. After a batch that failed, while nothing is
queued, the engine is probed once a second until it works (app/batching/probes.py) or is given up.
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
from functools import partial

from app.batching import engine_failures
from app.batching.admission import Load, check_room
from app.batching.batches import Batch, Computed, Run, Slice, count_of
from app.batching.engine_failures import EngineFailures
from app.batching.engine_threads import EngineThreads
from app.batching.fill_policy import FillPolicy
from app.batching.job_queue import JobQueue
from app.batching.jobs import Images, Job, ModelIdentity, Ticket
from app.batching.swap import Swap
from app.engine_errors import EngineBroken
from app.errors import EngineFailed
from app.memory import forget_stack

log = logging.getLogger(__name__)

# How long `close` waits for the engine's threads. An engine that hangs never returns.
CLOSE_S = 1.0


class Batcher:
    """The queue and the task that empties it. Everything but the engine's work happens on the event loop.

    `run` maps uint8 (N, 3, S, S) to float32 (N, classes), 1 <= N <= max_batch, and is called in one thread of its
    own, or in two if it `overlaps` batches (app/engine.py). The first engine decides that; engines that take over are
    called in the same way. `model` is its name and version, `guessed_images_per_s` what it may do in full batches, 0 if
    unknown.
    `on_batch(images, seconds)` is called after each batch, `on_fatal(reason)` when the loop dies.
    """

    def __init__(
        self,
        run: Run,
        model: ModelIdentity,
        *,
        max_batch: int,
        max_queue_images: int,
        max_queue_s: float = math.inf,
        max_wait_s: float = 0.0,
        guessed_images_per_s: float = 0.0,
        overlaps: bool = False,
        on_batch: Callable[[int, float], None] = lambda _images, _seconds: None,
        on_fatal: Callable[[str], None] = lambda _reason: None,
    ) -> None:
        self._run = run
        self.model = model
        self.max_batch = max_batch
        self.max_queue_images = max_queue_images
        self.max_queue_s = max_queue_s
        self._on_batch = on_batch
        self._on_fatal = on_fatal
        self.queued_images = 0
        self._jobs = JobQueue()
        self._batches: deque[Batch] = deque()
        self._running_images = 0
        self._swap: Swap | None = None
        self.last_progress = time.monotonic()
        """When a batch was last formed or ended, or the batcher was made, as a time.monotonic()."""
        self._policy = FillPolicy(max_batch, max_wait_s, guessed_images_per_s)
        self.failures = EngineFailures()
        self._changed = asyncio.Event()
        # While the loop waits for a batch to fill up: until when, and how many queued images wake it before.
        self._wait_deadline = 0.0
        self._wake_at_images = 1
        self._threads = EngineThreads(overlaps=overlaps, full=max_batch)
        self._task: asyncio.Task[None] | None = None
        self._dead = False
        self._closed = False

    # -- for requests

    def require_room(self, count: int, deadline: float) -> None:
        """Raise what `app.batching.admission.check_room` raises, or EngineFailed if the engine is dead."""
        if self._dead:
            raise EngineFailed
        check_room(self.load, count, deadline, max_queue_images=self.max_queue_images, max_queue_s=self.max_queue_s)

    @property
    def load(self) -> Load:
        """What the engine has to do."""
        return Load(self.queued_images, self._running_images, self._policy.pace.images_per_s, self.max_batch)

    def admit(self, count: int, deadline: float) -> Ticket:
        """Reserve places for `count` images that are wanted by `deadline`. Raises what `require_room` raises."""
        self.require_room(count, deadline)
        self.queued_images += count
        return Ticket(self._free_places, count)

    def submit(self, ticket: Ticket, images: Images, deadline: float) -> Job:
        """Queue uint8 (N, 3, S, S), 1 <= N <= the ticket's places; `deadline` is a time.monotonic().

        Raises EngineFailed if the engine is dead.
        """
        if self._dead:
            raise EngineFailed
        ticket.give_back(ticket.places - len(images))
        job = Job(images, ticket, deadline)
        if not self._jobs and not self._batches:
            self.last_progress = job.enqueued
        self._jobs.append(job)
        self._policy.returning.came(len(images), job.enqueued)
        if self._batches:
            self._top_up()
        elif self._jobs.images >= self._wake_at_images or self._policy.latest_start(job) < self._wait_deadline:
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
        return time.monotonic() - self.last_progress if self._jobs or self._batches else 0.0

    def start(self) -> None:
        """Start the loop and the engine's threads. Raises RuntimeError where there is no thread to be had."""
        self._threads.start()  # not with the first batch: its requests would be in neither list if that failed
        self._task = asyncio.get_running_loop().create_task(self._loop(), name="batcher")
        self._task.add_done_callback(self._ended)

    async def swap(self, run: Run, model: ModelIdentity) -> None:
        """Let another engine compute all batches from the next possible one on; returns once it does.

        The old one has ended its last batch by then. One swap at a time. Raises EngineFailed if the loop ends first.
        """
        if self._dead:
            raise EngineFailed
        self._swap = swap = Swap(run, model, asyncio.get_running_loop().create_future())
        self._changed.set()
        try:
            await swap.done
        except asyncio.CancelledError:
            if swap.done.cancelled():
                raise
            swap.done.result()  # it came too late: the other engine computes already, and is not to be closed
        finally:
            self._swap = None

    async def close(self, last: Callable[[], None] = lambda: None) -> None:
        """Stop the loop; what still waits fails with EngineFailed.

        `last` is called in an engine's thread after all current work; both are waited for CLOSE_S at most.
        """
        if self._closed:
            return
        self._closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._threads.finish(last)
        except TimeoutError:
            log.warning("the engine still computes, or takes long to close: it is left as it is")
        except Exception:
            log.exception("the engine could not be closed")
        self._threads.close()

    def _ended(self, task: asyncio.Task[None]) -> None:
        """Fail everything that waits, whatever ended the loop, and report the end unless it was asked for."""
        self._dead = True
        for batch in self._batches:
            batch.result.cancel()
            batch.fail(EngineFailed())
        for batch in self._batches:  # once nobody waits for any: they lead to one another
            batch.turn.end()
        for job in self._jobs:
            job.fail(EngineFailed())
        self._jobs.clear()
        self._batches.clear()
        if self._swap is not None and not self._swap.done.done():
            self._swap.done.set_exception(EngineFailed())
        if not task.cancelled():
            error = task.exception()
            log.error("the batcher has ended", exc_info=error)
            what = f": {error}" if isinstance(error, EngineBroken) else ""  # of others the line above has it
            self._on_fatal(f"the engine or its batcher died: {type(error).__name__}{what}")

    # -- the loop

    async def _loop(self) -> None:
        while True:
            await self._wait_for_work()
            if self._swap is not None and not self._jobs.head_is_begun:
                self._apply(self._swap)
                continue
            if self._jobs:
                await self._wait_for_more()
                # While an engine waits to take over, only what a request that was begun has left.
                self._enqueue_slices(self._jobs.take(self.max_batch, head_only=self._swap is not None))
            elif self.failures.probe is not None:
                self._enqueue(self.failures.probe)
            while self._batches:
                self._top_up()
                await self._finish_batch(self._batches[0])
                self._batches.popleft()
                self._mark_first_running()
                self.last_progress = time.monotonic()

    async def _wait_for_work(self) -> None:
        """Wait for images or for another engine, or, after a failure, until it is time for a probe."""
        if self.failures.probe is None:  # a timeout has a price, which a lone client would pay
            await self._work()
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(engine_failures.PROBE_AFTER_S):
                await self._work()

    async def _work(self) -> None:
        """Wait for images or for another engine."""
        while not self._jobs and self._swap is None:
            self._changed.clear()
            await self._changed.wait()

    def _apply(self, swap: Swap) -> None:
        self._swap = None
        if swap.done.cancelled():
            return
        self._run, self.model = swap.run, swap.model
        self.failures.clear()
        self._policy.pace.engine_exchanged()
        swap.done.set_result(None)

    async def _wait_for_more(self) -> None:
        """Wait as long as `FillPolicy.wait_limits` says, unless an engine is to take over."""
        while self._swap is None:
            self._wait_deadline, self._wake_at_images = self._policy.wait_limits(self._jobs)
            left_s = self._wait_deadline - time.monotonic()
            if left_s <= 0:
                break
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._changed.wait()
        self._wake_at_images = 1

    def _top_up(self) -> None:
        """Put what waits into the batch that the engine comes to next, unless another engine waits to take over."""
        least = self._policy.least_to_hand_over
        while self._jobs.images >= least and self._swap is None:
            last = self._batches[-1]
            room = last.room(self.max_batch)
            if room == 0 and len(self._batches) > 1:
                return
            slices = self._jobs.take(room or self.max_batch)
            if not room or not last.add(slices):  # it is full, or the thread has begun it, now or just after
                self._enqueue_slices(slices)
            elif last is self._batches[0]:
                self._mark_running(slices)

    def _enqueue_slices(self, slices: list[Slice]) -> None:
        """Make a batch of them, if there are any."""
        if slices:
            self._enqueue(Batch(slices))

    def _enqueue(self, batch: Batch) -> None:
        """Let the engine compute a batch, after those that it has."""
        before = self._batches[-1] if self._batches else None
        batch.result = self._threads.compute(batch, self._run, before, partial(self._hand_out_if_alone, batch))
        self._batches.append(batch)
        if len(self._batches) == 1:
            self.last_progress = time.monotonic()
            self._mark_first_running()

    def _mark_first_running(self) -> None:
        """Free the places of the batch that the engine has come to, if there is one."""
        self._running_images = 0
        if self._batches:
            self._mark_running(self._batches[0].slices)

    def _mark_running(self, slices: list[Slice]) -> None:
        """Free the places of images that are computed now."""
        for job, images in slices:
            job.ticket.give_back(len(images))
            self._running_images += len(images)

    async def _finish_batch(self, batch: Batch) -> None:
        """Wait for a batch and hand out its answers. Raises EngineBroken if there is no point in going on."""
        try:
            computed = await batch.result
        except EngineBroken:
            raise
        except Exception as error:
            if batch.is_handed_out:  # it was not the engine that failed, but what hands its answers out
                raise
            batch.fail_by(error)
            self.failures.add(error, batch)
            forget_stack(error)  # it is logged
            return
        if not batch.is_handed_out:
            self._hand_out(batch, computed)

    def _hand_out_if_alone(self, batch: Batch, computed: Computed) -> None:
        """Hand out a batch's answers before the loop hears of it, if nothing else waits: it would take two turns.

        Else the loop gives the engine its next batch before anybody is answered.
        """
        if len(self._batches) == 1 and not self._jobs:
            self._hand_out(batch, computed)

    def _hand_out(self, batch: Batch, computed: Computed) -> None:
        """Give its requests what the engine has found out, and learn from it."""
        batch.is_handed_out = True
        if computed.probabilities is not None:  # an abandoned batch was not computed, and says nothing of the engine
            self.failures.clear()
        if computed.slices:  # of requests: a probe has none
            now = time.monotonic()
            computed.deliver(self.model, now)
            self._policy.batch_ended(computed.slices, computed.seconds, now)
            self._on_batch(count_of(computed.slices), computed.seconds)
