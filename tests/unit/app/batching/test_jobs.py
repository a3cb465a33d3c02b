"""A request's images end once, with an outcome or an error, and whoever waits hears of it."""

import asyncio
import math

import numpy as np
import pytest

from app.batching.jobs import Job, Ticket
from app.errors import ClientGone, EngineFailed
from tests.batchers import MODEL, pictures

pytestmark = pytest.mark.anyio


def job(freed, count=1):
    return Job(pictures(count), Ticket(freed.append, count), math.inf)


async def test_who_is_called_back_is_so_once_with_places_and_images_given_back():
    freed, told = [], []
    one = job(freed, 2)
    for _ in range(2):  # the engine process's part of it, and the request's
        one.when_ended(lambda ended: told.append((ended.outcome, ended.error, list(freed), len(ended.images))))
    one.answer(np.ones((1, 3)), MODEL, 0.5)
    await asyncio.sleep(0)
    assert told == []
    one.answer(np.zeros((1, 3)), MODEL, 0.5)
    await asyncio.sleep(0)
    assert len(told) == 2
    outcome, error, places, images = told[0]
    np.testing.assert_array_equal(outcome.probabilities, [[1, 1, 1], [0, 0, 0]])
    assert (error, places, images, outcome.inference_s) == (None, [2], 0, 1.0)
    one.fail(EngineFailed())
    one.abandon()
    await asyncio.sleep(0)
    assert len(told) == 2
    assert one.error is None


async def test_who_comes_after_its_end_is_called_back_too():
    """Its deadline may pass while it is queued."""
    one, told = job([]), []
    one.fail(EngineFailed())
    one.when_ended(told.append)
    assert told == []
    await asyncio.sleep(0)
    assert told == [one]


async def test_who_fails_when_called_back_spoils_nothing_for_others():
    seen, told = [], []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context["exception"]))
    one = job([])
    one.when_ended(lambda _job: 1 / 0)
    one.when_ended(told.append)
    one.answer(np.ones((1, 3)), MODEL, 0.0)
    await asyncio.sleep(0)
    assert told == [one]
    assert [type(error) for error in seen] == [ZeroDivisionError]


@pytest.mark.parametrize("before", [True, False])
async def test_the_future_has_what_it_ended_with_whenever_it_is_asked_for(before):
    good, bad = job([]), job([])
    waiting = [good.future, bad.future] if before else []
    good.answer(np.ones((1, 3)), MODEL, 0.0)
    bad.fail(EngineFailed())
    assert await good.future is good.outcome
    with pytest.raises(EngineFailed):
        await bad.future
    assert waiting in ([], [good.future, bad.future])


async def test_who_gives_the_future_up_gives_the_job_up():
    freed = []
    one = job(freed)
    waiting = asyncio.ensure_future(asyncio.wait_for(one.future, 60))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.sleep(0)
    assert one.done
    assert isinstance(one.error, ClientGone)
    assert freed == [1]
