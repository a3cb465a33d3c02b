import asyncio
import math
import threading
import time

import numpy as np
import pytest

from app.batcher import Batcher
from app.batching.batches import Computed
from app.batching.fill_policy import TOP_UP_MIN_BATCH_S
from app.errors import ClientGone, DeadlinePassed, EngineFailed, QueueFull
from tests.batchers import MODEL, occupied, outcome_of, pictures, running, submit
from tests.fakes import FakeEngine, rounded_probabilities

pytestmark = pytest.mark.anyio


async def test_an_idle_engine_takes_a_single_image_at_once():
    engine = FakeEngine()
    async with running(engine) as batcher:
        images = pictures(1)
        outcome = await submit(batcher, images)
    np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))
    assert engine.batches == [1]
    assert batcher.queued_images == 0


async def test_what_queues_while_the_engine_is_busy_becomes_the_next_batch_and_answers_keep_their_owner():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        requests = [pictures(n, seed=n) for n in (1, 2, 1)]
        waiting = [submit(batcher, images) for images in requests]
        await asyncio.sleep(0)
        assert batcher.queued_images == 4
        engine.release()
        outcomes = await asyncio.gather(*waiting)
        await first
    assert engine.batches == [1, 4]
    for images, outcome in zip(requests, outcomes, strict=True):
        np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))
        assert outcome.queue_s > 0


async def test_a_request_larger_than_a_batch_is_split():
    engine = FakeEngine()
    async with running(engine) as batcher:
        images = pictures(11)
        outcome = await submit(batcher, images)
    assert engine.batches == [4, 4, 3]
    np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))


async def test_a_full_queue_refuses_and_has_room_again_afterwards():
    engine = FakeEngine()
    async with running(engine, max_queue_images=4) as batcher:
        first = await occupied(engine, batcher)
        waiting = submit(batcher, pictures(3))
        with pytest.raises(QueueFull) as refused:
            batcher.admit(2, time.monotonic() + 30)
        assert 1 <= refused.value.retry_after_s <= 60
        engine.release()
        await asyncio.gather(first, waiting)
        batcher.admit(4, time.monotonic() + 30).release()
    assert batcher.queued_images == 0


async def test_places_of_images_that_could_not_be_read_are_free_at_once():
    engine = FakeEngine()
    async with running(engine, max_queue_images=4) as batcher:
        first = await occupied(engine, batcher)
        job = batcher.submit(batcher.admit(4, math.inf), pictures(1), math.inf)
        assert batcher.queued_images == 1
        batcher.admit(3, time.monotonic() + 30).release()
        engine.release()
        await asyncio.gather(first, outcome_of(job))


async def test_what_cannot_be_done_by_its_deadline_is_refused_at_once():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        full = submit(batcher, pictures(4))  # a full batch, which tells the batcher how fast the engine is
        engine.release()
        await asyncio.gather(first, full)
        batcher._policy.pace.images_per_s = 10.0
        first = await occupied(engine, batcher)
        waiting = submit(batcher, pictures(8))
        await asyncio.sleep(0)
        # 1 in the engine, 8 in the queue and 7 more: 1.6 seconds
        with pytest.raises(QueueFull) as refused:
            batcher.admit(7, time.monotonic() + 1.9)
        assert refused.value.retry_after_s == 1
        batcher.admit(7, time.monotonic() + 2.5).release()
        engine.release()
        await asyncio.gather(first, waiting)
        batcher.admit(60, time.monotonic() + 0.1).release()  # nothing waits: tried, however long it takes
    assert batcher.queued_images == 0


async def test_what_would_wait_too_long_is_refused_at_once_but_two_batches_may_always_wait():
    engine = FakeEngine()
    async with running(engine, max_queue_s=0.5) as batcher:
        batcher._policy.pace.images_per_s = 10.0
        first = await occupied(engine, batcher)
        far = time.monotonic() + 1000
        tickets = [batcher.admit(1, far) for _ in range(8)]
        with pytest.raises(QueueFull) as refused:
            batcher.require_room(1, far)
        assert refused.value.retry_after_s == 1
        assert refused.value.batch_s == batcher.max_batch / 10
        batcher._policy.pace.images_per_s = 100.0  # the same queue on a faster engine: 0.09 s
        tickets.append(batcher.admit(50, far))
        with pytest.raises(QueueFull):  # there would be room for six more, but not the time
            batcher.require_room(1, far)
        for ticket in tickets:
            ticket.release()
        batcher.admit(64, far).release()
        engine.release()
        await first


async def test_one_fast_batch_among_slow_ones_does_not_make_the_engine_fast():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_ended(4, 4.0, full=True)
        await submit(batcher, pictures(4))
        assert 1.0 < batcher._policy.pace.images_per_s <= 1 / 0.9


async def test_only_full_batches_tell_how_fast_the_engine_is():
    engine = FakeEngine()
    async with running(engine) as batcher:
        await submit(batcher, pictures(3))
        assert batcher._policy.pace.images_per_s == 0
        await submit(batcher, pictures(4))
        assert batcher._policy.pace.images_per_s > 0


async def test_an_engine_that_was_slow_once_is_not_thought_to_be_slow_for_good():
    async with running(FakeEngine()) as batcher:
        # A full batch that stood still: another one is not let in by its deadline.
        batcher._policy.pace.batch_ended(4, 2.0, full=True)
        for _ in range(100):
            await submit(batcher, pictures(1))
        assert batcher._policy.pace.images_per_s > 10


async def test_an_expired_request_fails_at_its_deadline_and_never_costs_the_engine():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        with pytest.raises(DeadlinePassed):
            await submit(batcher, pictures(3), seconds=0.01)
        assert batcher.queued_images == 0
        engine.release()
        await first
        await submit(batcher, pictures(2))
    assert engine.batches == [1, 2]


async def test_an_abandoned_request_never_costs_the_engine():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        job = batcher.submit(batcher.admit(3, time.monotonic() + 30), pictures(3), time.monotonic() + 30)
        waiting = job.future
        job.abandon()
        with pytest.raises(ClientGone):
            await waiting
        engine.release()
        await first
        await submit(batcher, pictures(2))
    assert engine.batches == [1, 2]


@pytest.mark.parametrize("counts", [[2, 2], [1], [3, 1, 1]], ids=["full", "not full", "more than one"])
async def test_the_next_batch_follows_without_the_event_loop(counts):
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        first = await occupied(engine, batcher)
        waiting = [submit(batcher, pictures(count, seed=count)) for count in counts]
        await asyncio.sleep(0)
        engine.release()
        assert engine.entered.wait(10)  # the event loop stands still meanwhile
        outcomes = await asyncio.gather(*waiting)
        for count, outcome in zip(counts, outcomes, strict=True):
            np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(pictures(count, seed=count)))
        await first
        assert batcher.queued_images == 0
    assert engine.batches == [1, *([4, 1] if sum(counts) == 5 else [sum(counts)])]


@pytest.mark.parametrize(("batch_s", "batches"), [(TOP_UP_MIN_BATCH_S, 2), (TOP_UP_MIN_BATCH_S / 2, 1)])
async def test_a_quick_engine_waits_for_the_event_loop_to_collect_a_batch(batch_s, batches):
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_s = batch_s
        first = await occupied(engine, batcher)
        waiting = submit(batcher, pictures(3))
        await asyncio.sleep(0)
        assert len(batcher._batches) == batches
        engine.release()
        await asyncio.gather(first, waiting)
    assert engine.batches == [1, 3]


async def test_hundreds_of_requests_while_batches_begin_are_all_answered_rightly_once():
    engine = FakeEngine()
    every = pictures(2000)
    asked = [every[at : at + 1 + at // 3 % 3] for at in range(0, 2000, 3)]
    async with running(engine, max_queue_images=10_000) as batcher:

        async def ask(images, turns):
            for _ in range(turns):
                await asyncio.sleep(0)
            batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
            outcome = await submit(batcher, images)
            np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))

        await asyncio.gather(*(ask(images, number % 7) for number, images in enumerate(asked)))
        assert batcher.queued_images == batcher._jobs.images == batcher._running_images == 0
    assert sum(engine.batches) == sum(map(len, asked))


async def test_what_is_abandoned_behind_a_running_batch_is_not_computed():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        jobs = [batcher.submit(batcher.admit(2, math.inf), pictures(2), time.monotonic() + 30) for _ in range(2)]
        jobs[0].abandon()
        engine.release()
        await asyncio.gather(first, jobs[1].future)
        with pytest.raises(ClientGone):
            await jobs[0].future
        assert batcher.queued_images == 0
    assert engine.batches == [1, 2]


async def test_the_rest_of_a_split_request_is_dropped_once_it_expires():
    engine = FakeEngine()
    async with running(engine) as batcher:
        engine.hold()
        job = batcher.submit(batcher.admit(9, math.inf), pictures(9), time.monotonic() + 30)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        job._expire()  # as its timer does
        with pytest.raises(DeadlinePassed):
            await job.future
        engine.release()
        await submit(batcher, pictures(2))
    assert engine.batches == [4, 2]


async def test_closing_fails_what_still_waits():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        waiting = submit(batcher, pictures(1))
        await asyncio.sleep(0)
        await batcher.close()
        for request in (first, waiting):
            with pytest.raises(EngineFailed):
                await request


async def test_closing_ends_the_engines_thread():
    engine, threads = FakeEngine(), []
    async with running(engine) as batcher:
        compute = engine.run
        batcher._run = lambda images: (threads.append(threading.current_thread()), compute(images))[1]
        await submit(batcher, pictures(1))
    (thread,) = threads
    await asyncio.to_thread(thread.join, 10)
    assert not thread.is_alive()


async def test_places_are_free_from_when_the_engine_comes_to_a_batch():
    engine, go_on = FakeEngine(), threading.Semaphore(0)
    async with running(engine) as batcher:
        compute = engine.run
        batcher._run = lambda images: go_on.acquire(timeout=30) and compute(images)
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        first = submit(batcher, pictures(1))
        while not batcher._batches or batcher._batches[0].room(1) is not None:
            await asyncio.sleep(0)
        second = submit(batcher, pictures(3))
        assert (batcher.queued_images, batcher._running_images) == (3, 1)
        go_on.release()
        await first
        assert (batcher.queued_images, batcher._running_images) == (0, 3)
        go_on.release()
        await second
        await asyncio.sleep(0)
        assert (batcher.queued_images, batcher._running_images) == (0, 0)


async def test_what_is_left_of_a_request_is_handed_over_once_the_batch_before_it_has_begun():
    engine, begun, go_on = FakeEngine(), threading.Semaphore(0), threading.Semaphore(0)

    def compute(images):
        begun.release()
        assert go_on.acquire(timeout=30)
        return engine.run(images)

    async with running(engine) as batcher:
        batcher._run = compute
        first = submit(batcher, pictures(1))
        assert await asyncio.to_thread(begun.acquire, timeout=10)
        rest = submit(batcher, pictures(9))
        assert len(batcher._batches) == 2
        go_on.release()
        assert begun.acquire(timeout=10)  # the event loop stands still meanwhile
        await first
        assert len(batcher._batches) == 2
        go_on.release(3)
        await rest
    assert engine.batches == [1, 4, 4, 1]


async def test_who_joins_the_batch_that_is_next_is_no_longer_queued():
    engine, go = FakeEngine(), threading.Event()
    async with running(engine) as batcher:
        busy = batcher._threads.workers[0].run(go.wait, 30)  # the engine's thread has not come to the first batch yet
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        waiting = [submit(batcher, pictures(1))]
        while not batcher._batches:
            await asyncio.sleep(0)
        waiting.append(submit(batcher, pictures(2)))
        assert (batcher.queued_images, batcher._running_images) == (0, 3)
        go.set()
        await asyncio.gather(busy, *waiting)
    assert engine.batches == [3]


@pytest.mark.parametrize(("enqueued", "queue_s"), [(100.0, 2.0), (103.0, 0.0)])
async def test_a_request_waits_until_the_first_of_its_batches_begins(enqueued, queue_s):
    batcher = Batcher(FakeEngine().run, MODEL, max_batch=4, max_queue_images=64)
    images = pictures(8)
    job = batcher.submit(batcher.admit(8, math.inf), images, math.inf)
    job.enqueued = enqueued
    for now, part in ((107.0, images[:4]), (115.0, images[4:])):
        Computed([(job, part)], rounded_probabilities(part), 5.0).deliver(MODEL, now)
    outcome = job.future.result()
    assert (outcome.queue_s, outcome.inference_s) == (queue_s, 10.0)


async def test_only_who_is_answered_whole_can_come_back():
    batcher = Batcher(FakeEngine().run, MODEL, max_batch=4, max_queue_images=64)
    answers = []
    batcher._policy.returning.batch_ended = lambda count, _seconds, _now: answers.append(count)
    images = pictures(6)
    job = batcher.submit(batcher.admit(6, math.inf), images, math.inf)
    job.taken = 6  # its rest is in the next batch already
    for part in (images[:4], images[4:]):
        Computed([(job, part)], rounded_probabilities(part), 5.0).deliver(MODEL, 100.0)
        batcher._policy.batch_ended([(job, part)], seconds=5.0, now=100.0)
    assert answers == [0, 2]


async def test_whom_a_batch_answers_has_the_answer_before_it_is_counted():
    engine, done = FakeEngine(), []
    async with running(engine) as batcher:
        job = batcher.submit(batcher.admit(1, math.inf), pictures(1), time.monotonic() + 30.0)
        batcher._policy.returning.batch_ended = lambda count, _seconds, _now: done.append((count, job.future.done()))
        await job.future
    assert done == [(1, True)]


async def test_a_lone_answer_is_handed_out_before_the_loop_hears_that_the_batch_is_done():
    """Its client would wait two turns of the event loop for it."""
    engine = FakeEngine()
    async with running(engine) as batcher:
        job = batcher.submit(batcher.admit(1, math.inf), pictures(1), math.inf)
        batches = []
        job.when_ended(lambda _job: batches.append(len(batcher._batches)))
        await job.future
        await submit(batcher, pictures(1))
    assert batches == [1]  # which the loop takes away when it hears of it


async def test_the_engine_has_its_next_batch_before_anybody_is_answered():
    """Writing the answers to a large one takes milliseconds, in which a quick engine would have nothing to do."""
    engine = FakeEngine()
    async with running(engine, max_batch=4) as batcher:
        first = await occupied(engine, batcher)
        batcher._policy.pace.batch_s = 0.0  # quick: nothing is handed over that does not fill a batch
        ahead = []
        job = batcher.submit(batcher.admit(2, math.inf), pictures(2), math.inf)
        batcher._batches[0].slices[0][0].when_ended(
            lambda _job: ahead.append([batch.count for batch in batcher._batches])
        )
        engine.release()
        await first
        await job.future
    assert ahead == [[2]]
