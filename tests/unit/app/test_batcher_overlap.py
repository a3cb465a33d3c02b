"""An engine that overlaps batches: a full one begins when the one before is nearly done."""

import asyncio
import logging
import math
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

from app.batching import turns
from app.batching.batches import Batch
from app.batching.fill_policy import TOP_UP_MIN_BATCH_S
from app.batching.jobs import Job, Ticket
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.engine_service import EngineService
from app.errors import EngineFailed, ServiceError
from app.settings import Settings
from tests.batchers import MODEL, pictures, running, submit
from tests.fakes import FakeEngine, probabilities_of, rounded_probabilities
from tests.garbage import no_collection
from tests.noting_event import NotingEvent

pytestmark = pytest.mark.anyio

FULL = 4


class Stepped:
    """An engine whose batches stand still until they are told to go on, each by its number."""

    def __init__(self):
        self.sizes, self.errors, self.open = [], {}, False
        self._nearly = []  # by batch: what to call
        self._begun, self._go = [], []
        self._changed = threading.Condition()

    def run(self, images, nearly_done=None):
        with self._changed:
            number = len(self.sizes)
            self.sizes.append(len(images))
            self._nearly.append(nearly_done)
            self._go.append(threading.Event())
            self._changed.notify_all()
        assert self.open or self._go[number].wait(30)
        if number in self.errors:
            raise self.errors[number]
        return probabilities_of(images)

    async def begun(self, count):
        def wait():
            with self._changed:
                return self._changed.wait_for(lambda: len(self.sizes) >= count, 10)

        assert await asyncio.to_thread(wait), self.sizes

    def nearly_done(self, number):
        self._nearly[number]()

    def finish(self, number):
        self._go[number].set()

    def release(self):
        self.open = True
        for event in self._go:
            event.set()


class Quick:
    """An engine that says that it is nearly done as soon as it begins."""

    def __init__(self):
        self.sizes, self.threads = [], []

    def run(self, images, nearly_done=None):
        self.sizes.append(len(images))
        self.threads.append(threading.current_thread().name)
        nearly_done()
        return probabilities_of(images)

    def release(self):
        pass


def end_of_second_thread():
    """Wait for it, in a thread; fail if it does not come."""
    for thread in threading.enumerate():
        if thread.name == "engine-2":
            thread.join(10)
            assert not thread.is_alive()


def overlapping(engine, **options):
    return running(engine, max_batch=FULL, overlaps=True, **options)


def expect_all_back(batcher):
    """Only what fills a batch is handed over from now on."""
    batcher._policy.returning._share = 1.0


def slow(batcher):
    """What waits is handed over at once from now on."""
    batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S


async def test_a_full_batch_begins_when_the_one_before_is_nearly_done_and_answers_keep_their_owner():
    engine = Stepped()
    async with overlapping(engine) as batcher:
        images = [pictures(FULL, seed=seed) for seed in range(3)]
        waiting = [submit(batcher, each) for each in images]
        await engine.begun(1)
        assert engine.sizes == [FULL]
        engine.nearly_done(0)
        await engine.begun(2)
        engine.finish(1)  # the other thread is quicker
        engine.finish(0)
        await engine.begun(3)
        engine.finish(2)
        for each, outcome in zip(images, await asyncio.gather(*waiting), strict=True):
            np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(each))


async def test_one_that_is_not_full_grows_until_it_is_or_the_one_before_is_done():
    engine = Stepped()
    async with overlapping(engine) as batcher:
        slow(batcher)
        waiting = [submit(batcher, pictures(FULL)), submit(batcher, pictures(1))]
        await engine.begun(1)
        engine.nearly_done(0)
        waiting.append(submit(batcher, pictures(FULL - 2)))
        await asyncio.sleep(0)
        assert [batch.count for batch in batcher._batches] == [FULL, FULL - 1]
        assert batcher._batches[1].room(FULL) == 1  # it is open
        waiting.append(submit(batcher, pictures(1)))  # which fills it
        await engine.begun(2)
        waiting.append(submit(batcher, pictures(1)))
        engine.nearly_done(1)
        engine.finish(0)
        await asyncio.sleep(0)
        assert engine.sizes == [FULL, FULL]
        engine.finish(1)
        await engine.begun(3)
        engine.release()
        await asyncio.gather(*waiting)
    assert engine.sizes == [FULL, FULL, 1]


async def test_a_burst_is_handed_over_two_batches_deep_before_any_has_begun():
    engine = Stepped()
    async with overlapping(engine) as batcher:
        expect_all_back(batcher)
        waiting = [submit(batcher, pictures(FULL)) for _ in range(3)]
        while not batcher._batches:
            await asyncio.sleep(0)
        assert len(batcher._batches) == 2
        await engine.begun(1)
        engine.nearly_done(0)  # no request comes, by which the next batch would be handed over
        await engine.begun(2)
        engine.release()
        await asyncio.gather(*waiting)


async def test_without_overlap_the_engine_has_one_batch_and_is_told_of_nothing():
    engine = Stepped()
    async with running(engine, max_batch=FULL) as batcher:
        slow(batcher)
        waiting = [submit(batcher, pictures(FULL)) for _ in range(2)]
        await engine.begun(1)
        assert engine._nearly == [None]
        assert len(batcher._threads.workers) == 1
        engine.release()
        await asyncio.gather(*waiting)


@pytest.mark.parametrize(("error", "seen"), [(ValueError("secret"), ServiceError), (EngineOutOfMemory(), EngineFailed)])
async def test_one_that_fails_leaves_the_one_beside_it_alone(error, seen):
    engine = Stepped()
    engine.errors = {0: error, 2: error}
    async with overlapping(engine) as batcher:
        first, second = submit(batcher, pictures(FULL)), submit(batcher, pictures(FULL, seed=1))
        await engine.begun(1)
        engine.nearly_done(0)
        await engine.begun(2)
        engine.release()
        with pytest.raises(seen):
            await first
        np.testing.assert_array_equal((await second).probabilities, rounded_probabilities(pictures(FULL, seed=1)))
        assert batcher.alive


async def test_halves_of_what_did_not_fit_are_done_before_the_next_batch_begins():
    engine = Stepped()
    engine.errors = {0: EngineOutOfMemory()}
    async with overlapping(engine) as batcher:
        waiting = [submit(batcher, pictures(FULL)), submit(batcher, pictures(FULL))]
        await engine.begun(1)
        engine.finish(0)
        await engine.begun(2)
        assert engine._nearly[1] is None
        engine.release()
        await asyncio.gather(*waiting)
    assert engine.sizes == [FULL, FULL // 2, FULL // 2, FULL]


async def test_a_broken_engine_ends_all_batches_and_no_thread_waits_for_one_that_never_begins():
    engine = Stepped()
    engine.errors = {0: EngineBroken("gone")}
    reasons = []
    async with overlapping(engine, on_fatal=reasons.append) as batcher:
        slow(batcher)
        waiting = [submit(batcher, pictures(FULL)) for _ in range(4)]
        await engine.begun(1)
        engine.finish(0)
        for one in waiting:
            with pytest.raises(EngineFailed):
                await one
        assert len(reasons) == 1
        engine.release()
        await asyncio.wait_for(asyncio.gather(*(worker.run(int) for worker in batcher._threads.workers)), 10)


async def test_when_all_ends_no_thread_waits_for_a_batch_that_never_begins(monkeypatch):
    monkeypatch.setattr(turns, "threading", SimpleNamespace(Event=NotingEvent))
    engine, go = Stepped(), threading.Event()
    async with overlapping(engine) as batcher:
        slow(batcher)
        busy = batcher._threads.workers[0].run(go.wait, 30)
        waiting = [submit(batcher, pictures(FULL)) for _ in range(2)]
        while len(batcher._batches) < 2:
            await asyncio.sleep(0)
        assert await asyncio.to_thread(batcher._batches[1].turn._come.waited_for.wait, 10)
        closing = asyncio.ensure_future(batcher.close())
        for one in waiting:
            with pytest.raises(EngineFailed):
                await one
        go.set()
        await asyncio.gather(busy, closing)
        assert not engine.sizes
        await asyncio.to_thread(end_of_second_thread)


async def test_a_batch_that_follows_another_is_full_from_its_last_image_on():
    def images():
        return [(Job(image, Ticket(lambda _places: None, 1), math.inf), image) for image in [pictures(1)]]

    before, batch, full = Batch([]), Batch(images()), Batch(images())
    batch.follow(before, full=2)
    assert not batch.turn.is_full
    batch.add(images())
    assert batch.turn.is_full
    full.follow(before, full=1)
    assert full.turn.is_full
    for job, _image in [*batch.slices, *full.slices]:
        job.future.cancel()


async def test_closing_waits_for_both_threads(monkeypatch):
    monkeypatch.setattr("app.batcher.CLOSE_S", 30.0)
    engine, closed = Stepped(), []
    async with overlapping(engine) as batcher:
        waiting = [submit(batcher, pictures(FULL)) for _ in range(2)]
        await engine.begun(1)
        engine.nearly_done(0)
        await engine.begun(2)
        engine.finish(0)
        await waiting[0]
        closing = asyncio.ensure_future(batcher.close(lambda: closed.append(True)))
        while batcher.alive:
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        await batcher._threads.workers[0].run(int)  # what it was given before has been done
        assert not closed
        engine.release()
        await closing
        assert closed
        with pytest.raises(EngineFailed):
            await waiting[1]
        await asyncio.to_thread(end_of_second_thread)


async def test_what_is_alone_is_always_computed_in_the_same_thread():
    engine = Quick()
    async with overlapping(engine) as batcher:
        for _ in range(3):
            await submit(batcher, pictures(1))
            while batcher._batches:
                await asyncio.sleep(0)
    assert set(engine.threads) == {"engine"}


async def test_another_engine_takes_over_once_both_threads_are_done():
    engine, other = Stepped(), FakeEngine(shift=1)
    async with overlapping(engine) as batcher:
        waiting = [submit(batcher, pictures(FULL)) for _ in range(2)]
        await engine.begun(1)
        engine.nearly_done(0)
        await engine.begun(2)
        swapping = asyncio.ensure_future(batcher.swap(other.run, MODEL))
        engine.finish(0)
        await waiting[0]
        assert not swapping.done()
        engine.finish(1)
        await swapping
        np.testing.assert_array_equal((await waiting[1]).probabilities, rounded_probabilities(pictures(FULL)))
        after = (await submit(batcher, pictures(1))).probabilities
        np.testing.assert_array_equal(after, np.roll(rounded_probabilities(pictures(1)), 1, axis=1))


async def test_a_request_split_over_two_batches_keeps_its_order_though_the_second_ends_first():
    engine = Stepped()
    async with overlapping(engine) as batcher:
        images = pictures(2 * FULL)
        waiting = submit(batcher, images)
        await engine.begun(1)
        engine.nearly_done(0)
        await engine.begun(2)
        engine.finish(1)
        await batcher._batches[1].result
        engine.finish(0)
        np.testing.assert_array_equal((await waiting).probabilities, rounded_probabilities(images))


async def test_batches_that_failed_leave_none_of_their_images(monkeypatch):
    monkeypatch.setattr(logging.getLogger("app.batching.batches"), "disabled", True)  # pytest keeps what is logged
    engine = FakeEngine()
    engine.errors = [ValueError(), MemoryError(), MemoryError()]  # the second one fails in halves, too
    with no_collection():
        async with overlapping(engine) as batcher:
            kept = []
            for _ in range(2):
                images = pictures(FULL)
                kept.append(weakref.ref(images))
                job = batcher.submit(batcher.admit(FULL, math.inf), images, math.inf)
                del images
                await asyncio.wait({job.future})
                assert isinstance(job.future.exception(), ServiceError)
                del job
            await submit(batcher, pictures(1))  # the thread and the loop have let go of what came before
        assert all(each() is None for each in kept)


async def test_hundreds_of_requests_through_two_threads_are_all_answered_rightly_once():
    engine, every = Quick(), pictures(2000)
    async with overlapping(engine, max_queue_images=10_000) as batcher:

        async def ask(images, pauses):
            for _ in range(pauses):
                await asyncio.sleep(0)
            slow(batcher)
            outcome = await submit(batcher, images)
            np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))

        asked = [every[at : at + 1 + at % 7] for at in range(0, 2000, 8)]
        await asyncio.gather(*(ask(images, number % 50) for number, images in enumerate(asked)))
        assert batcher.queued_images == batcher._jobs.images == batcher._running_images == 0
    assert sum(engine.sizes) == sum(map(len, asked))


@pytest.mark.parametrize("overlaps", [True, False])
async def test_the_engine_says_whether_its_batches_overlap(overlaps):
    engine = FakeEngine()
    engine.overlaps = overlaps
    predictor = EngineService(Settings(), lambda _settings: engine)._predictor_of(engine)
    assert len(predictor.batcher._threads.workers) == 1 + overlaps
    await predictor.close()
