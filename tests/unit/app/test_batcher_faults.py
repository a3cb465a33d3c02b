"""What fails, hangs or dies: the batch that it concerns ends at once, the batcher goes on, or says that it cannot."""

import asyncio
import gc
import math
import threading
import time

import numpy as np
import pytest

from app.batcher import Batcher
from app.batching.batches import Computed
from app.batching.engine_failures import MAX_CONSECUTIVE_FAILURES
from app.batching.fill_policy import TOP_UP_MIN_BATCH_S
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.errors import ClientGone, DeadlinePassed, EngineFailed, ServiceError
from tests.batchers import MODEL, occupied, pictures, running, submit
from tests.fakes import FakeEngine, probabilities_of, rounded_probabilities

pytestmark = pytest.mark.anyio


def fail(error):
    raise error


async def test_an_exception_fails_its_own_batch_only():
    engine = FakeEngine()
    engine.errors = [ValueError("secret detail")]
    async with running(engine) as batcher:
        with pytest.raises(ServiceError) as failed:
            await submit(batcher, pictures(1))
        assert failed.value.status == 500
        assert "secret" not in str(failed.value.problem())
        await submit(batcher, pictures(1))
        assert batcher.alive


@pytest.mark.parametrize("error", [EngineOutOfMemory, MemoryError])
async def test_a_batch_that_does_not_fit_is_halved_once(error):
    engine = FakeEngine()
    engine.errors = [error()]
    async with running(engine) as batcher:
        images = pictures(4)
        outcome = await submit(batcher, images)
        np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))
        assert engine.batches == [4, 2, 2]
        engine.errors = [error(), error()]
        with pytest.raises(EngineFailed):
            await submit(batcher, images)
        assert batcher.alive


async def test_the_halves_of_a_batch_that_does_not_fit_come_before_the_next_batch():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        engine.hold()
        first = submit(batcher, pictures(4))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        second = submit(batcher, pictures(3))
        assert len(batcher._batches) == 2
        engine.errors = [EngineOutOfMemory()]
        engine.release()
        await asyncio.gather(first, second)
    assert engine.batches == [4, 2, 2, 3]


async def out_of_memory(engine, batcher, times):
    for number in range(times):
        engine.errors = [EngineOutOfMemory()]
        with pytest.raises(EngineFailed):
            await submit(batcher, pictures(1, seed=number))


async def test_an_engine_that_never_has_memory_again_is_broken(monkeypatch):
    engine, reasons = FakeEngine(), []
    async with running(engine, on_fatal=reasons.append) as batcher:
        await out_of_memory(engine, batcher, 2 * MAX_CONSECUTIVE_FAILURES)  # for a moment only
        assert batcher.alive
        await submit(batcher, pictures(1))
        monkeypatch.setattr("app.batching.engine_failures.OUT_OF_MEMORY_S", 0.0)
        await out_of_memory(engine, batcher, MAX_CONSECUTIVE_FAILURES - 1)
        assert batcher.alive  # a batch has worked since the others
        await out_of_memory(engine, batcher, 1)
        await asyncio.wait({batcher._task})
        assert not batcher.alive
    assert reasons == ["the engine or its batcher died: EngineBroken: out of memory in every batch for 0 s"]


async def test_the_engine_is_closed_in_its_own_thread_at_the_end(caplog):
    closed = []
    async with running(FakeEngine()) as batcher:
        await submit(batcher, pictures(1))
        await batcher.close(lambda: closed.append(threading.current_thread().name))
        await batcher.close(lambda: closed.append("again"))
    assert closed == ["engine"]
    assert caplog.messages == []  # the second time there is nothing to wait for


async def test_batches_without_memory_and_one_that_fails_are_not_failures_in_a_row():
    engine = FakeEngine()
    async with running(engine) as batcher:
        await out_of_memory(engine, batcher, MAX_CONSECUTIVE_FAILURES - 1)
        engine.errors = [RuntimeError("a bug")]
        with pytest.raises(ServiceError):
            await submit(batcher, pictures(1))
        assert batcher.alive


async def test_the_end_waits_for_no_engine_that_hangs(monkeypatch, caplog):
    monkeypatch.setattr("app.batcher.CLOSE_S", 0.01)
    engine, closed = FakeEngine(), []
    async with running(engine) as batcher:
        waiting = await occupied(engine, batcher)
        await batcher.close(lambda: closed.append("too late"))
        engine.release()
        with pytest.raises(EngineFailed):
            await waiting
        for thread in [one for one in threading.enumerate() if one.name == "engine"]:
            await asyncio.to_thread(thread.join, 10)
    assert closed == []
    assert "it is left as it is" in caplog.text


async def test_an_engine_that_cannot_be_closed_does_not_keep_the_service_from_ending(caplog):
    async with running(FakeEngine()) as batcher:
        await batcher.close(lambda: 1 / 0)
    assert "the engine could not be closed" in caplog.text


async def test_the_time_of_a_halved_batch_counts_once():
    engine = FakeEngine()
    async with running(engine) as batcher:
        engine.errors = [EngineOutOfMemory()]
        seconds = []
        batcher._on_batch = lambda _count, took: seconds.append(took)
        outcome = await submit(batcher, pictures(4))
        assert [outcome.inference_s] == seconds


@pytest.mark.parametrize("answer", [np.zeros((1, 10), np.float32), np.full((2, 10), math.nan, np.float32)])
async def test_answers_that_make_no_sense_are_an_error(answer):
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._run = lambda _images: answer
        with pytest.raises(ServiceError) as failed:
            await submit(batcher, pictures(2))
        assert failed.value.status == 500


async def test_a_broken_engine_fails_everything_that_waits_and_says_so():
    engine = FakeEngine()
    reasons = []
    async with running(engine, on_fatal=reasons.append) as batcher:
        engine.errors = [EngineBroken("device lost")]
        first = await occupied(engine, batcher)
        waiting = submit(batcher, pictures(6))
        await asyncio.sleep(0)
        engine.release()
        for request in (first, waiting):
            with pytest.raises(EngineFailed):
                await request
        assert not batcher.alive
        assert reasons == ["the engine or its batcher died: EngineBroken: device lost"]
        with pytest.raises(EngineFailed):
            batcher.admit(1, time.monotonic() + 30)
    assert batcher.queued_images == 0


async def test_three_failures_in_a_row_are_a_broken_engine():
    engine = FakeEngine()
    engine.errors = [ValueError()] * 3
    reasons = []
    async with running(engine, on_fatal=reasons.append) as batcher:
        for _ in range(3):
            with pytest.raises(ServiceError):
                await submit(batcher, pictures(1))
        await asyncio.wait({batcher._task})
        assert reasons


async def test_a_batch_that_nobody_waited_for_is_no_success_between_failures():
    engine = FakeEngine()
    reasons = []
    async with running(engine, on_fatal=reasons.append) as batcher:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            abandoned = await occupied(engine, batcher)
            batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
            gone = batcher.submit(batcher.admit(1, math.inf), pictures(1), math.inf)
            assert len(batcher._batches) == 2
            gone.abandon()
            assert isinstance(gone.future.exception(), ClientGone)
            engine.errors = [ValueError()]
            engine.release()
            with pytest.raises(ServiceError):
                await abandoned
        await asyncio.wait({batcher._task})
    assert reasons


async def test_a_dying_loop_fails_what_waits(monkeypatch):
    engine = FakeEngine()
    reasons = []
    async with running(engine, on_fatal=reasons.append) as batcher:
        monkeypatch.setattr(batcher._jobs, "take", lambda _room, **_: 1 / 0)
        with pytest.raises(EngineFailed):
            await submit(batcher, pictures(1))
        assert reasons


async def test_an_expired_request_leaves_no_pixels_behind_a_hanging_engine():
    engine = FakeEngine()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        job = batcher.submit(batcher.admit(9, time.monotonic() + 30), pictures(9), time.monotonic() + 0.01)
        with pytest.raises(DeadlinePassed):
            await job.future
        assert job.images.nbytes == 0
        assert job.images.base is None
        engine.release()
        await first


async def test_work_without_progress_counts_as_a_stall_and_idleness_does_not(monkeypatch):
    engine = FakeEngine()
    async with running(engine) as batcher:
        assert batcher.stalled_s() == 0
        first = await occupied(engine, batcher)
        assert batcher.stalled_s() > 0
        engine.release()
        await first
        await asyncio.sleep(0)
        assert batcher.stalled_s() == 0
        monkeypatch.setattr(batcher, "_changed", asyncio.Event())  # a wake-up gets lost: the loop waits on the old one
        waiting = submit(batcher, pictures(1))
        await asyncio.sleep(0)
        assert not batcher._batches
        assert batcher.stalled_s() > 0
        waiting.cancel()


async def test_a_thread_that_cannot_be_had_fails_the_start_and_not_the_first_requests(monkeypatch):
    engine = FakeEngine()
    batcher = Batcher(engine.run, MODEL, max_batch=4, max_queue_images=64)
    with monkeypatch.context() as patch:
        patch.setattr("app.threads.threading.Thread.start", lambda _: fail(RuntimeError("can't start new thread")))
        with pytest.raises(RuntimeError, match="thread"):
            batcher.start()
    assert not batcher.alive
    async with running(engine) as batcher:
        monkeypatch.setattr("app.threads.threading.Thread.start", lambda _: fail(RuntimeError("too late")))
        await submit(batcher, pictures(1))


async def test_a_thread_that_dies_fails_its_batch_and_not_the_loop():
    engine = FakeEngine()
    engine.errors = [SystemExit()]
    async with running(engine) as batcher:
        with pytest.raises(ServiceError) as failed:
            await submit(batcher, pictures(1))
        assert failed.value.status == 500
        await submit(batcher, pictures(1))


async def test_batches_that_fail_now_and_then_are_not_failures_in_a_row():
    engine = FakeEngine()
    async with running(engine) as batcher:
        for _ in range(MAX_CONSECUTIVE_FAILURES + 1):
            engine.errors = [ValueError()]
            with pytest.raises(ServiceError):
                await submit(batcher, pictures(1))
            await submit(batcher, pictures(1))
        assert batcher.alive


async def test_work_after_a_long_rest_is_not_a_stall():
    async with running(FakeEngine()) as batcher:
        batcher.last_progress -= 3600
        waiting = submit(batcher, pictures(1))
        assert batcher.stalled_s() < 60
        await waiting


async def test_each_of_many_batches_in_a_row_is_progress():
    gate = threading.Semaphore(0)
    async with running(FakeEngine()) as batcher:
        batcher._run = lambda images: gate.acquire(timeout=30) and probabilities_of(images)
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        first = submit(batcher, pictures(1))
        while not batcher._batches or batcher._batches[0].room(1) is not None:
            await asyncio.sleep(0)
        second = submit(batcher, pictures(1, seed=1))
        await asyncio.sleep(0)
        assert len(batcher._batches) == 2
        batcher.last_progress -= 3600
        gate.release()
        await first
        assert batcher.stalled_s() < 60
        gate.release()
        await second


async def test_a_batch_that_was_long_in_filling_up_is_progress_when_it_begins():
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600) as batcher:
        engine.hold()
        first = submit(batcher, pictures(3), seconds=36000)
        batcher.last_progress -= 3600
        last = submit(batcher, pictures(1), seconds=36000)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        assert batcher.stalled_s() < 60
        engine.release()
        await asyncio.gather(first, last)


async def test_what_has_expired_when_its_batch_begins_is_not_computed():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        first = await occupied(engine, batcher)
        late = batcher.submit(batcher.admit(2, math.inf), pictures(2), time.monotonic() + 0.01)
        alive = submit(batcher, pictures(1))
        while time.monotonic() <= late.deadline:
            pass  # the event loop, and with it the deadline's timer, stands still
        engine.release()
        assert engine.entered.wait(10)
        with pytest.raises(DeadlinePassed):
            await late.future
        await asyncio.gather(first, alive)
    assert engine.batches == [1, 1]


async def test_an_answered_request_leaves_no_timer_behind(monkeypatch):
    timers, loop = [], asyncio.get_running_loop()
    later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda *given: timers.append(later(*given)) or timers[-1])
    async with running(FakeEngine()) as batcher:
        await submit(batcher, pictures(1))
        await asyncio.sleep(0)
    assert timers
    assert all(timer.cancelled() for timer in timers)


class BreaksAtEveryBatch(FakeEngine):
    """Each batch waits for a `release` of its own."""

    def run(self, images):
        try:
            super().run(images)
        finally:
            self.hold()
        raise EngineBroken("device lost")


async def test_an_engine_that_breaks_again_after_the_end_is_told_of_once():
    engine, reasons, told = BreaksAtEveryBatch(), [], []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context["message"]))
    async with running(engine, on_fatal=reasons.append) as batcher:
        first = await occupied(engine, batcher)
        second = submit(batcher, pictures(4))
        await asyncio.sleep(0)
        engine.release()
        assert engine.entered.wait(10)  # meanwhile the event loop has not seen how the first one ended
        for request in (first, second):
            with pytest.raises(EngineFailed):
                await request
    gc.collect()
    assert (len(reasons), told) == (1, [])


@pytest.mark.parametrize("others", [0, 1])
async def test_what_fails_in_handing_out_ends_the_batcher_and_is_not_taken_for_the_engines_fault(monkeypatch, others):
    monkeypatch.setattr(Computed, "deliver", lambda *_: fail(LookupError()))
    engine, reasons = FakeEngine(), []
    async with running(engine, on_fatal=reasons.append) as batcher:
        batcher._policy.pace.batch_s = 0.0  # the others wait in the queue
        first = await occupied(engine, batcher)
        waiting = [first, *(submit(batcher, pictures(1)) for _ in range(others))]
        await asyncio.sleep(0)
        engine.release()
        ended = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(error) for error in ended] == [EngineFailed] * (1 + others)
        assert not batcher.alive
        assert not batcher.failures.failing
    assert reasons == ["the engine or its batcher died: LookupError"]
