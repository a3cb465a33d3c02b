"""A batch that waits: to be full, for as long as the settings say, or for those who come back at once."""

import asyncio
import math
import time

import pytest

from app.batching.fill_policy import TOP_UP_MIN_BATCH_S
from app.errors import ClientGone
from tests.batchers import occupied, pictures, running, submit
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


async def test_with_a_wait_a_full_batch_goes_at_once_and_a_partial_one_when_the_wait_is_over():
    engine = FakeEngine()
    async with running(engine, max_wait_s=0.05) as batcher:
        await submit(batcher, pictures(2))
        batcher._policy.max_wait_s = 3600
        await asyncio.gather(*(submit(batcher, pictures(1, seed=n)) for n in range(4)))
    assert engine.batches == [2, 4]


@pytest.mark.parametrize("others", [0, 2])
async def test_nobody_waits_for_a_full_batch_past_the_own_deadline_or_anothers(monkeypatch, others):
    monkeypatch.setattr("app.batching.fill_policy.SHARE_TO_COMPUTE", 0.998)
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600) as batcher:
        patient = [submit(batcher, pictures(1, seed=n), seconds=36000) for n in range(others)]
        await asyncio.sleep(0)
        await asyncio.gather(*patient, submit(batcher, pictures(1, seed=9)))
    assert engine.batches == [others + 1]


async def test_with_a_wait_a_batch_that_is_not_full_is_not_begun():
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600) as batcher:
        waiting = []
        for seed in range(4):
            assert not batcher._batches
            waiting.append(submit(batcher, pictures(1, seed), seconds=36000))
            for _ in range(5):
                await asyncio.sleep(0)
        await asyncio.gather(*waiting)
    assert engine.batches == [4]


async def test_with_a_wait_what_does_not_fill_a_batch_is_not_handed_over_either():
    engine = FakeEngine()
    async with running(engine, max_wait_s=0.001) as batcher:
        first = await occupied(engine, batcher)
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        waiting = submit(batcher, pictures(2))
        assert len(batcher._batches) == 1
        engine.release()
        await asyncio.gather(first, waiting)
    assert engine.batches == [1, 2]


async def test_who_was_abandoned_does_not_fill_a_batch():
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600) as batcher:
        gone = batcher.submit(batcher.admit(2, math.inf), pictures(2), time.monotonic() + 36000)
        gone.abandon()
        with pytest.raises(ClientGone):
            await gone.future
        waiting = [submit(batcher, pictures(1, seed), seconds=36000) for seed in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.gather(*waiting, submit(batcher, pictures(2), seconds=36000))
    assert engine.batches == [4]


async def test_who_waits_for_a_full_batch_keeps_the_time_that_two_take():
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600) as batcher:
        batcher._policy.pace.batch_s = 50.0
        await submit(batcher, pictures(1), seconds=100.0)
    assert engine.batches == [1]


async def test_who_waits_for_a_full_batch_keeps_the_time_that_two_full_ones_take_though_the_last_one_was_small():
    engine = FakeEngine()
    async with running(engine, max_wait_s=3600, guessed_images_per_s=4 / 50) as batcher:
        batcher._policy.pace.batch_s = 0.01
        await submit(batcher, pictures(1), seconds=100.0)
    assert engine.batches == [1]


class Expecting:
    """Expects so many images after each batch, and for so long."""

    expected = True

    def __init__(self, images, seconds=30.0):
        self.images, self.seconds = images, seconds
        self.left, self.until = 0, 0.0

    def batch_ended(self, _answered, _seconds, now):
        self.left, self.until = self.images, now + self.seconds

    def came(self, images, _now):
        self.left -= images

    def awaited(self):
        return max(0, self.left), self.until


async def answered_one(batcher):
    """Let a request be answered, and the batcher come to wait for others."""
    await submit(batcher, pictures(1, seed=9))
    await asyncio.sleep(0)


async def test_who_is_expected_back_shares_the_next_batch():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.returning = Expecting(3)
        await answered_one(batcher)
        first = [submit(batcher, pictures(1, seed=n)) for n in range(2)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert engine.batches == [1]
        await asyncio.gather(*first, submit(batcher, pictures(1, seed=2)))
    assert engine.batches == [1, 3]


async def test_who_is_expected_back_and_stays_away_is_waited_for_no_longer_than_others_took():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.returning = Expecting(3, seconds=0.01)
        await answered_one(batcher)
        await submit(batcher, pictures(2))
    assert engine.batches == [1, 2]


@pytest.mark.parametrize("others", [0, 2])
async def test_nobody_who_is_expected_is_waited_for_past_a_deadline(others):
    engine = FakeEngine()
    async with running(engine, max_batch=8) as batcher:
        batcher._policy.returning = Expecting(5, seconds=3600)
        await answered_one(batcher)
        batcher._policy.pace.batch_s = 50.0
        patient = [submit(batcher, pictures(1, seed=n), seconds=36000) for n in range(others)]
        for _ in range(5):
            await asyncio.sleep(0)
        assert engine.batches == [1]
        await asyncio.gather(*patient, submit(batcher, pictures(1), seconds=100.0))
    assert engine.batches == [1, others + 1]


async def test_a_full_batch_waits_for_nobody_who_is_expected():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.returning = Expecting(100)
        await answered_one(batcher)
        await submit(batcher, pictures(4))
    assert engine.batches == [1, 4]


async def test_an_engine_that_takes_over_waits_for_nobody_who_is_expected():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        batcher._policy.returning = Expecting(3)
        await answered_one(batcher)
        await batcher.swap(new.run, {"name": "fake", "version": "2"})


async def test_while_others_are_expected_only_a_full_batch_is_handed_over():
    engine = FakeEngine()
    async with running(engine) as batcher:
        batcher._policy.pace.batch_s = TOP_UP_MIN_BATCH_S
        batcher._policy.returning = Expecting(0)
        first = await occupied(engine, batcher)
        waiting = [submit(batcher, pictures(3))]
        await asyncio.sleep(0)
        assert len(batcher._batches) == 1
        waiting.append(submit(batcher, pictures(1)))
        await asyncio.sleep(0)
        assert len(batcher._batches) == 2
        engine.release()
        await asyncio.gather(first, *waiting)
    assert engine.batches == [1, 4]


async def test_with_a_wait_nobody_is_waited_for_besides():
    engine = FakeEngine()
    async with running(engine, max_wait_s=0.001) as batcher:
        batcher._policy.returning = Expecting(3, seconds=3600)
        await answered_one(batcher)
        await submit(batcher, pictures(1))
    assert engine.batches == [1, 1]
