"""Another engine takes over between two batches: every request is computed by one engine, which its outcome names."""

import asyncio
import math
import time

import numpy as np
import pytest

from app.engine_errors import EngineBroken
from app.errors import DeadlinePassed, EngineFailed, ServiceError
from tests.batchers import MODEL, occupied, pictures, running, submit
from tests.fakes import FakeEngine, rounded_probabilities

pytestmark = pytest.mark.anyio

NEXT = {"name": "fake", "version": "2"}


async def test_another_engine_takes_over_when_nothing_is_queued():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        images = pictures(3)
        assert (await submit(batcher, images)).model == MODEL
        await batcher.swap(new.run, NEXT)
        outcome = await submit(batcher, images)
        assert outcome.model == batcher.model == NEXT
        np.testing.assert_array_equal(outcome.probabilities, np.roll(rounded_probabilities(images), 1, axis=1))
    assert (old.batches, new.batches) == ([3], [3])


async def swap_within_a_request(batcher, old, new):
    """Let a swap wait for the rest of a request that `old` is held in; return the request and the swap."""
    old.hold()
    begun = submit(batcher, pictures(6))
    assert await asyncio.to_thread(old.entered.wait, 10)
    swap = asyncio.ensure_future(batcher.swap(new.run, NEXT))
    await asyncio.sleep(0)
    return begun, swap


async def test_a_split_request_is_finished_by_the_engine_that_began_it_and_the_next_one_waits_for_the_other():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        begun, swap = await swap_within_a_request(batcher, old, new)
        next_one = submit(batcher, pictures(7, seed=1))
        old.release()
        first, second, _ = await asyncio.gather(begun, next_one, swap)
    assert (old.batches, new.batches) == ([4, 2], [4, 3])  # without a swap: 4, 4, 4, 1
    assert (first.model, second.model) == (MODEL, NEXT)
    np.testing.assert_array_equal(first.probabilities, rounded_probabilities(pictures(6)))
    np.testing.assert_array_equal(second.probabilities, np.roll(rounded_probabilities(pictures(7, seed=1)), 1, axis=1))


async def test_a_swap_does_not_wait_for_the_rest_of_a_request_that_has_expired():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        old.hold()
        begun = batcher.submit(batcher.admit(9, math.inf), pictures(9), time.monotonic() + 30)
        assert await asyncio.to_thread(old.entered.wait, 10)
        swap = asyncio.ensure_future(batcher.swap(new.run, NEXT))
        begun.fail(DeadlinePassed())  # as its timer does, but not before the engine has begun
        with pytest.raises(DeadlinePassed):
            await begun.future
        old.release()
        await swap
    assert old.batches == [4]


async def test_the_first_full_batch_of_the_new_engine_says_how_quick_it_is():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        await submit(batcher, pictures(4))
        batcher._policy.pace.images_per_s = 1e9
        await batcher.swap(new.run, NEXT)
        await submit(batcher, pictures(4))
        assert 4 / batcher.load.images_per_s == pytest.approx(batcher._policy.pace.batch_s)


async def test_failures_of_the_old_engine_do_not_count_against_the_new_one():
    old, new = FakeEngine(), FakeEngine(shift=1)
    old.errors, new.errors = [ValueError(), ValueError()], [ValueError()]
    async with running(old) as batcher:
        for engine in (old, old, new):
            if engine is new:
                await batcher.swap(new.run, NEXT)
            with pytest.raises(ServiceError):
                await submit(batcher, pictures(1))
        await submit(batcher, pictures(1))
        assert batcher.alive


@pytest.mark.parametrize("end", ["closing", "breaking"])
async def test_a_swap_that_the_loop_does_not_live_to_see_fails(end):
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        first = await occupied(old, batcher)
        swap = asyncio.ensure_future(batcher.swap(new.run, NEXT))
        await asyncio.sleep(0)
        if end == "closing":
            await batcher.close()
        else:
            old.errors = [EngineBroken("device lost")]
            old.release()
        for waiting in (first, swap):
            with pytest.raises(EngineFailed):
                await waiting
        with pytest.raises(EngineFailed):
            await batcher.swap(new.run, NEXT)


async def test_a_swap_that_was_given_up_is_not_made():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        first = await occupied(old, batcher)
        swap = asyncio.ensure_future(batcher.swap(new.run, NEXT))
        await asyncio.sleep(0)
        swap.cancel()
        old.release()
        assert (await first).model == MODEL
        assert (await submit(batcher, pictures(1))).model == MODEL
    assert new.batches == []


async def test_a_swap_that_is_given_up_as_the_loop_comes_to_it_is_not_made():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        await submit(batcher, pictures(1))
        swap = asyncio.ensure_future(batcher.swap(new.run, NEXT))
        await asyncio.sleep(0)  # the loop has been woken up
        swap.cancel()
        await asyncio.wait({swap})
        assert (await submit(batcher, pictures(1))).model == MODEL
    assert new.batches == []


async def test_batches_are_filled_again_once_a_swap_is_given_up():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old) as batcher:
        begun, swap = await swap_within_a_request(batcher, old, new)
        swap.cancel()
        await asyncio.wait({swap})
        next_one = submit(batcher, pictures(2, seed=1))
        old.release()
        await asyncio.gather(begun, next_one)
    assert old.batches == [4, 4]


async def test_a_swap_that_is_given_up_as_the_engine_breaks_keeps_nobody_from_being_told():
    engine, reasons = FakeEngine(), []
    async with running(engine, on_fatal=reasons.append) as batcher:
        first = await occupied(engine, batcher)
        swap = asyncio.ensure_future(batcher.swap(FakeEngine(shift=1).run, NEXT))
        engine.errors = [EngineBroken("device lost")]
        engine.release()
        while not batcher._task.done():
            await asyncio.sleep(0)
        swap.cancel()
        await asyncio.wait({first, swap})
        assert isinstance(first.exception(), EngineFailed)
        assert swap.cancelled()
    assert reasons == ["the engine or its batcher died: EngineBroken: device lost"]


async def test_a_swap_does_not_wait_until_a_batch_is_full():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with running(old, max_wait_s=3600) as batcher:
        first = submit(batcher, pictures(1), seconds=36000)
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.wait_for(batcher.swap(new.run, NEXT), 30)
        outcomes = await asyncio.gather(first, submit(batcher, pictures(3), seconds=36000))
        assert [outcome.model for outcome in outcomes] == [NEXT, NEXT]
