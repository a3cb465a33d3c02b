"""Which state follows which, whatever is asked for in between."""

import asyncio

import pytest

from app.lifecycle import Lifecycle, State


def test_who_was_told_to_end_while_starting_never_turns_ready():
    lifecycle = Lifecycle()
    lifecycle.drain()
    lifecycle.mark_ready()
    assert lifecycle.state is State.DRAINING


def test_a_failure_is_final():
    lifecycle = Lifecycle()
    lifecycle.mark_ready()
    lifecycle.fail("the device is lost", "the engine failed")
    for later in (
        lifecycle.drain,
        lifecycle.mark_ready,
        lifecycle.stop,
        lambda: lifecycle.follow(State.READY, None, 0.0),
    ):
        later()
        assert (lifecycle.state, lifecycle.reason, lifecycle.exit_code) == (State.FAILED, "the engine failed", 1)


def fail(lifecycle):
    lifecycle.fail("the device is lost", "the engine failed")


def follow_failed(lifecycle):
    lifecycle.follow(State.FAILED, "the engine failed", 0.0)


async def wait_long(lifecycle, *, limit_s, after_failure_s, failure):
    async with lifecycle.time_limit(limit_s, after_failure_s=after_failure_s):
        failure(lifecycle)
        await asyncio.sleep(5)


@pytest.mark.anyio
@pytest.mark.parametrize("failure", [fail, follow_failed])
@pytest.mark.parametrize("limit_s", [None, 3600.0])
@pytest.mark.parametrize("before", [True, False])
async def test_a_failure_shortens_what_is_waited_for_whenever_it_comes(failure, limit_s, before):
    lifecycle = Lifecycle()
    if before:
        failure(lifecycle)
    with pytest.raises(TimeoutError):
        await wait_long(lifecycle, limit_s=limit_s, after_failure_s=0.0, failure=failure)
    failure(lifecycle)  # nothing is waited for any more


@pytest.mark.anyio
async def test_a_failure_prolongs_nothing():
    lifecycle = Lifecycle()
    with pytest.raises(TimeoutError):
        await wait_long(lifecycle, limit_s=0.0, after_failure_s=3600.0, failure=fail)
