"""After a failure: what shows whether the engine works, and whose fault it was that an answer is not finite."""

import asyncio
import math

import numpy as np
import pytest

from app.batching.engine_failures import MAX_CONSECUTIVE_FAILURES
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.errors import ServiceError
from tests.batchers import occupied, pictures, running, submit
from tests.fakes import FakeEngine, rounded_probabilities

pytestmark = pytest.mark.anyio


@pytest.fixture
def probes_at_once(monkeypatch):
    monkeypatch.setattr("app.batching.engine_failures.PROBE_AFTER_S", 0.0)


@pytest.fixture(autouse=True)
def no_probes_by_themselves(monkeypatch):
    monkeypatch.setattr("app.batching.engine_failures.PROBE_AFTER_S", 3600.0)


async def fails(batcher, images):
    with pytest.raises(ServiceError) as failed:
        await submit(batcher, images)
    assert failed.value.status == 500


async def until_it_works(batcher):
    async with asyncio.timeout(30):
        while batcher.failures.probe is not None:
            await asyncio.sleep(0)


async def test_after_a_failure_a_black_image_shows_that_the_engine_works(probes_at_once):
    engine, computed, batches = FakeEngine(), [], []
    async with running(engine, on_batch=lambda *batch: batches.append(batch)) as batcher:
        compute = batcher._run
        batcher._run = lambda images: computed.append(images) or compute(images)
        engine.errors = [ValueError(), EngineOutOfMemory(), ValueError()]
        await fails(batcher, pictures(2))
        await until_it_works(batcher)
        assert not batcher.failures.failing
    assert engine.batches == [2, 1, 1, 1]
    for image in computed[1:]:
        np.testing.assert_array_equal(image, np.zeros((1, 3, 8, 8), np.uint8))
    assert batches == []  # they are nobody's, and no measure of what the engine does


async def test_without_a_failure_there_is_no_probe(probes_at_once):
    engine = FakeEngine()
    async with running(engine) as batcher:
        await submit(batcher, pictures(1))
        for _ in range(20):
            await asyncio.sleep(0)
    assert engine.batches == [1]


@pytest.mark.parametrize(
    ("errors", "reason"),
    [
        ([ValueError("broken")] * MAX_CONSECUTIVE_FAILURES, "3 batches failed in a row"),
        ([ValueError("odd"), EngineBroken("device lost")], "device lost"),
    ],
)
async def test_an_engine_that_is_broken_is_found_out_though_nobody_asks_it(probes_at_once, errors, reason, caplog):
    engine, reasons = FakeEngine(), []
    engine.errors = list(errors)
    async with running(engine, on_fatal=reasons.append) as batcher:
        await fails(batcher, pictures(1))
        await asyncio.wait({batcher._task}, timeout=30)
    assert reasons == [f"the engine or its batcher died: EngineBroken: {reason}"]
    assert caplog.messages == ["a batch of 1 failed", "the batcher has ended"]  # none of each probe


class Stepwise(FakeEngine):
    """Each batch but the first waits for a `release` of its own."""

    def run(self, images):
        try:
            return super().run(images)
        finally:
            self.hold()

    async def begins(self, number):
        async with asyncio.timeout(30):
            while len(self.batches) < number:
                await asyncio.sleep(0.001)


async def test_requests_that_come_during_a_probe_do_not_fail_with_it(probes_at_once):
    engine = Stepwise()
    engine.errors = [ValueError(), ValueError()]
    async with running(engine) as batcher:
        await fails(batcher, pictures(1))
        await engine.begins(2)
        assert batcher.stalled_s() > 0  # a device may hang in a probe as well
        waiting = submit(batcher, pictures(2))
        await asyncio.sleep(0)
        engine.release()
        await engine.begins(3)
        assert batcher.failures.failing
        engine.release()
        await waiting
        assert not batcher.failures.failing
    assert engine.batches == [1, 1, 2]


async def test_requests_and_another_engine_do_not_wait_for_the_probe():
    old, new = FakeEngine(), FakeEngine(shift=1)
    old.errors = [ValueError(), ValueError()]
    async with running(old) as batcher:
        await fails(batcher, pictures(1))
        await fails(batcher, pictures(1))
        assert batcher.failures.failing
        async with asyncio.timeout(30):
            await batcher.swap(new.run, {"name": "fake", "version": "2"})
        assert batcher.failures.probe is None
        assert not batcher.failures.failing


class Overflowing(FakeEngine):
    """Has no finite answer for images that begin with white, nor for any while `broken`."""

    broken = False

    def run(self, images):
        answer = super().run(images)
        answer[(images[:, :, 0, 0] == 255).all(axis=1) | self.broken] = math.nan
        return answer


def overflow(count=1):
    images = pictures(count)
    images[-1, :, 0, 0] = 255
    return images


async def test_an_answer_that_is_not_finite_is_its_own_images_only(caplog):
    engine = Overflowing()
    async with running(engine, max_batch=8) as batcher:
        first = await occupied(engine, batcher)
        sent = pictures(2, seed=1), overflow(2), overflow(1), pictures(2, seed=2)
        requests = [submit(batcher, images) for images in sent]
        await asyncio.sleep(0)
        engine.release()
        good, spoilt, alone, also_good = await asyncio.gather(*requests, return_exceptions=True)
        await first
        assert not batcher.failures.failing
    assert engine.batches == [1, 7]  # one batch, and no reason to ask for more
    assert alone.status == 500
    np.testing.assert_array_equal(spoilt.probabilities[0], rounded_probabilities(sent[1])[0])
    assert np.isnan(spoilt.probabilities[1]).all()
    np.testing.assert_array_equal(good.probabilities, rounded_probabilities(sent[0]))
    np.testing.assert_array_equal(also_good.probabilities, rounded_probabilities(sent[3]))
    assert caplog.messages == ["no finite answer for 2 images in a batch of 7: none is given"]


class ShortOfMemory(Overflowing):
    """Takes two images and no more."""

    def run(self, images):
        answer = super().run(images)
        if len(images) > 2:
            raise EngineOutOfMemory
        return answer


async def test_it_does_so_in_halves_as_well():
    engine = ShortOfMemory()
    async with running(engine) as batcher:
        first = await occupied(engine, batcher)
        requests = [submit(batcher, images) for images in (overflow(2), pictures(2))]
        await asyncio.sleep(0)
        engine.release()
        spoilt, good = await asyncio.gather(*requests, return_exceptions=True)
        await first
    assert engine.batches == [1, 4, 2, 2]
    assert np.isnan(spoilt.probabilities[:, 0]).tolist() == [False, True]
    np.testing.assert_array_equal(good.probabilities, rounded_probabilities(pictures(2)))


async def test_no_picture_ends_the_engine_however_often_it_is_sent():
    engine = Overflowing()
    async with running(engine) as batcher:
        for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
            await fails(batcher, overflow())
            assert batcher.failures.probe is None
        await submit(batcher, pictures(1))
    assert engine.batches == [1, 1] * 2 * MAX_CONSECUTIVE_FAILURES + [1]  # each time with a black image behind it


async def test_an_engine_without_any_finite_answer_is_broken():
    engine, reasons = Overflowing(), []
    engine.broken = True
    async with running(engine, on_fatal=reasons.append) as batcher:
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            await fails(batcher, pictures(3))
        await asyncio.wait({batcher._task}, timeout=30)
    assert reasons == ["the engine or its batcher died: EngineBroken: 3 batches failed in a row"]
