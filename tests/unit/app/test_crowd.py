"""What comes all at once is begun in order, some of it a turn of the event loop, and nothing is left behind."""

import asyncio
from types import SimpleNamespace

import pytest

from app.routes import crowd
from app.routes.crowd import TURN_S, Crowd

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock(monkeypatch):
    """A time that passes only where a test says so."""

    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(crowd, "time", clock)
    return clock


async def test_a_turn_begins_what_it_has_time_for_and_at_least_one_and_goes_on_in_order(clock):
    begun, waiting = [], Crowd()

    def start(number, seconds):
        begun.append(number)
        clock.now += seconds

    for number in range(8):
        waiting.begin(start, number, 10 * TURN_S if number == 6 else 0.4 * TURN_S)
    turns = [list(begun)]
    while waiting:
        await asyncio.sleep(0)
        if len(turns) == 1:
            waiting.begin(start, len(begun) + len(waiting), 0.4 * TURN_S)
        turns.append(begun[sum(map(len, turns)) :])
    assert turns == [[0, 1, 2], [3, 4, 5], [6], [7, 8]]


async def test_the_next_turn_begins_anew(clock):
    begun, waiting = [], Crowd()
    for number in range(5):
        clock.now += 2 * TURN_S
        waiting.begin(begun.append, number)
        await asyncio.sleep(0)
        assert begun == list(range(number + 1))
    assert len(waiting) == 0
