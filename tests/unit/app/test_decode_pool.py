"""Whose turn it is in the decoding threads, what is refused before it waits, and what is let go."""

import asyncio
import gc
import math
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

from app.decode_pool import GUESSED_S_PER_BYTE, PACE_MEMORY_S, Backlog, DecodePool
from app.errors import ClientGone, DeadlinePassed, NotReady, QueueFull

pytestmark = pytest.mark.anyio


@pytest.fixture
def clock(monkeypatch):
    """The pool's clock, which a test sets."""
    clock = SimpleNamespace(now=float(math.ceil(time.monotonic())))  # without fractions, so that sums are exact
    monkeypatch.setattr("app.decode_pool.time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


class Pool:
    """A pool whose threads wait for `go_on` before anything that they are given here; `done` is what they did."""

    def __init__(self, threads=1, max_queue_s=math.inf):
        self.pool = DecodePool(threads, max_queue_s)
        self.go_on = threading.Event()
        self.done = []
        self._held = [self.pool.submit(self._wait, [None], [0], time.monotonic() + 600) for _ in range(threads)]

    def _wait(self, _):
        assert self.go_on.wait(30)

    def do(self, item):
        self.done.append(item)
        return item

    def submit(self, items, size=1, function=None, seconds=600.0):
        return self.pool.submit(function or self.do, items, [size] * len(items), time.monotonic() + seconds)

    @property
    def load(self):
        return self.pool._backlog.load()

    async def close(self):
        self.go_on.set()
        await asyncio.gather(*(one.future for one in self._held))
        self.pool.close()


@pytest.fixture
async def held(anyio_backend):
    held = Pool()
    yield held
    await held.close()


async def test_results_come_in_the_order_of_their_items_whichever_thread_they_are_of():
    held = Pool(threads=4)
    work = held.submit(range(1000), function=lambda item: -item)
    await held.close()
    assert await work.future == [-item for item in range(1000)]
    assert len(work.seconds) == 1000
    assert held.load[:2] == (0, 0)


async def test_items_that_take_longer_than_a_turn_are_done_in_turns_with_other_requests(held, clock):
    def slow(item):
        clock.now += 1
        return held.do(item)

    many, few = held.submit(["many"] * 5, function=slow), held.submit(["few"] * 2, function=slow)
    one = held.submit(["one"], function=slow)
    held.go_on.set()
    await asyncio.gather(many.future, few.future, one.future)
    assert held.done == ["many", "few", "one", "many", "few", "many", "many", "many"]
    assert (one.busy_s, one.waited_s, few.busy_s, many.waited_s) == (1, 2, 2, 0)


async def test_small_items_share_a_turn(held, clock):
    works = [held.submit([name] * 3) for name in ("a", "b")]
    held.go_on.set()
    await asyncio.gather(*(work.future for work in works))
    assert held.done == ["a"] * 3 + ["b"] * 3


async def test_all_threads_may_work_for_one_request():
    held, together = Pool(threads=3), threading.Barrier(3)
    work = held.submit(range(3), function=lambda _: together.wait(30))
    held.go_on.set()
    assert sorted(await work.future) == [0, 1, 2]
    await held.close()


@pytest.mark.parametrize("end", [ClientGone, asyncio.CancelledError, DeadlinePassed])
async def test_what_has_ended_is_not_begun_and_takes_no_place(held, end):
    work = held.submit(range(256), size=1000, seconds=0.01 if end is DeadlinePassed else 600)
    assert held.load[:2] == (256, 256_000)
    if end is ClientGone:
        work.abandon()
    elif end is asyncio.CancelledError:
        work.future.cancel()
    with pytest.raises(end):
        await work.future
    await asyncio.sleep(0)
    assert not work.waiting
    assert held.load[:2] == (0, 0)
    held.go_on.set()
    other = held.submit(["other"])
    await other.future
    assert held.done == ["other"]


async def test_what_has_ended_is_not_kept_until_a_thread_comes_to_it(held):
    works = [held.submit([0]), held.pool.submit(held.do, [0], [0], time.monotonic() + 600, ahead=True)]
    left = [weakref.ref(work) for work in works]
    for work in works:
        work.abandon()
    await asyncio.gather(*(work.future for work in works), return_exceptions=True)
    del work, works
    await asyncio.sleep(0)
    gc.collect()
    assert [work() for work in left] == [None, None]


async def test_the_files_of_a_client_that_leaves_meanwhile_are_not_begun_any_more(held):
    begun, go_on = threading.Event(), threading.Event()

    def slow(item):
        begun.set()
        assert go_on.wait(30)
        return held.do(item)

    work = held.submit(range(256), function=slow)
    held.go_on.set()
    assert await asyncio.to_thread(begun.wait, 30)
    work.abandon()
    with pytest.raises(ClientGone):
        await work.future
    await asyncio.sleep(0)
    assert held.load[:2] == (0, 1)  # the one that has begun
    go_on.set()
    await held.submit(["other"]).future
    assert held.done == [0, "other"]
    assert held.load[:2] == (0, 0)


async def test_what_is_not_begun_by_its_deadline_never_is_even_if_the_event_loop_is_late_to_say_so(held, clock):
    def slow(item):
        clock.now += 400
        return held.do(item)

    work = held.submit(range(4), size=1000, function=slow)
    work.deadline = clock.now + 600
    held.go_on.set()
    with pytest.raises(DeadlinePassed):
        await work.future
    assert held.done == [0, 1]
    two = Backlog(threads=1)
    for _ in range(2):
        two.end(1000, 400.0)
    assert held.load.seconds_per_byte == two.load().seconds_per_byte  # those that were not begun say nothing


async def test_what_waited_counts_before_what_comes_is_let_in(held):
    held.pool.require_room(10**12, time.monotonic() + 1)  # nothing waits: there is no sooner than now
    held.submit([0], size=int(5.5 / GUESSED_S_PER_BYTE))
    with pytest.raises(QueueFull) as refused:
        held.pool.require_room(1, time.monotonic() + 6)
    assert refused.value.retry_after_s == 6
    held.pool.require_room(1, time.monotonic() + 9)
    with pytest.raises(QueueFull):
        held.pool.require_room(int(6 / GUESSED_S_PER_BYTE), time.monotonic() + 9)
    with pytest.raises(DeadlinePassed):
        held.pool.require_room(1, time.monotonic() - 1)


async def test_more_seconds_of_work_than_may_wait_do_not_unless_they_are_a_file_or_two_for_each_thread():
    held = Pool(threads=2, max_queue_s=1.0)
    for _ in range(4):
        held.pool.require_room(1, math.inf)
        held.submit([0], size=int(5 / GUESSED_S_PER_BYTE))
    with pytest.raises(QueueFull) as refused:
        held.pool.require_room(1, math.inf)
    assert refused.value.retry_after_s == 10  # 20 s of work, two threads
    await held.close()


def test_the_pace_is_that_of_the_last_seconds_of_decoding():
    backlog = Backlog(threads=1)
    for _ in range(1000):
        backlog.end(1000, PACE_MEMORY_S / 100)
    slow = backlog.load().seconds_per_byte
    assert slow == pytest.approx(PACE_MEMORY_S / 100_000, rel=0.01)
    for _ in range(20):  # as many as may wait for a moment, a hundredth of a second each
        backlog.end(1_000_000, 0.01)
    quick = backlog.load().seconds_per_byte
    assert quick < slow / 50
    backlog.end(1_000_000, None)  # which was not decoded
    assert backlog.load().seconds_per_byte == quick


def test_no_single_file_makes_the_pace():
    backlog = Backlog(threads=1)
    for _ in range(1000):
        backlog.end(600_000, 0.02)
    usual = backlog.load().seconds_per_byte
    backlog.end(2000, 3600.0)  # a picture of two kilobytes that announces the most that it may
    assert usual < backlog.load().seconds_per_byte < 4 * usual


async def test_what_threads_note_does_not_pile_up_where_nobody_asks_for_room():
    pool = DecodePool(1, math.inf)
    for number in range(50):
        assert await pool.submit(abs, [-number], [0], math.inf).future == [number]
    assert len(pool._backlog._ended) + len(pool._backlog._begun) <= 2
    pool.close()


async def test_what_a_thread_hangs_at_is_cancelled_when_the_pool_closes(held):
    hanging = held._held[0]
    waiting = held.submit([1, 2])
    held.pool.close()
    assert hanging.future.cancelled()
    assert waiting.future.cancelled()
    held._held.clear()


async def test_a_pool_that_is_closed_takes_nothing():
    pool = DecodePool(1, math.inf)
    pool.close()
    with pytest.raises(NotReady):
        pool.submit(print, [0], [0], math.inf)


async def test_threads_that_cannot_be_started_are_started_for_the_next_request(monkeypatch):
    pool, start = DecodePool(2, math.inf), threading.Thread.start
    fails = [True, False, True]

    def start_or_fail(thread):
        if fails and fails.pop(0):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    with pytest.raises(RuntimeError):
        pool.submit(abs, [1], [0], time.monotonic() + 60)
    for number, threads in ((2, 1), (3, 2)):  # one does it, too
        assert await pool.submit(abs, [-number], [0], time.monotonic() + 60).future == [number]
        assert pool._started == threads
    pool.close()


async def test_one_thread_that_hangs_is_no_standstill_while_others_go_on():
    pool, now = DecodePool(2, math.inf), time.monotonic()
    pool._started = 2
    pool._begun = {1: now - 3600, 2: now}
    assert pool.stalled_s() < 60
    pool._begun = {1: now - 3600}
    assert pool.stalled_s() == 0
