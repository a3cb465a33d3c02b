"""After a failure: what shows whether the engine works."""

import asyncio

import numpy as np
import pytest

from app.batching.engine_failures import MAX_CONSECUTIVE_FAILURES
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.errors import ServiceError
from tests.batchers import pictures, running, submit
from tests.fakes import FakeEngine

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
