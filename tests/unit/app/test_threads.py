"""Threads that compute step back: they and the threads that they start, and nobody else."""

import asyncio
import os
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.threads import NICENESS, ThreadDied, Worker, lower_priority
from tests.noting_event import NotingEvent

LEAST = 19  # of Linux


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def niceness_of_a_child():
    found = []
    child = threading.Thread(target=lambda: found.append(niceness()))
    child.start()
    child.join()
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a niceness is the whole process's")
def test_a_pool_that_steps_back_does_so_alone_and_with_its_children(monkeypatch):
    before = niceness()  # not 0 where the tests themselves were started behind others
    behind = min(before + NICENESS, LEAST)
    monkeypatch.setattr("app.threads.NICENESS", behind)
    with ThreadPoolExecutor(1, initializer=lower_priority) as pool:
        assert pool.submit(niceness).result() == behind
        assert pool.submit(niceness_of_a_child).result() == behind
    assert niceness() == before


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a niceness is the whole process's")
@pytest.mark.parametrize("started_at", [NICENESS, 10])
def test_who_is_behind_already_stays_there(monkeypatch, started_at):
    """To come forward takes a privilege, and was not asked for."""
    monkeypatch.setattr(os, "getpriority", lambda *_: started_at)
    monkeypatch.setattr(os, "setpriority", lambda *_: pytest.fail("it moved"))
    lower_priority()


@pytest.fixture
async def worker(anyio_backend):
    worker = Worker("engine")
    yield worker
    worker.close()


def fail(error):
    raise error


async def test_a_worker_does_pieces_of_work_in_turn_in_one_thread(worker):
    done = await asyncio.gather(*(worker.run(lambda n: (n, threading.current_thread().name), n) for n in range(5)))
    assert done == [(n, "engine") for n in range(5)]


async def test_a_worker_hands_on_what_is_raised_and_goes_on(worker):
    with pytest.raises(KeyError):
        await worker.run(fail, KeyError("no"))
    with pytest.raises(ThreadDied, match="SystemExit"):
        await worker.run(fail, SystemExit(1))
    assert await worker.run(lambda: 3) == 3


async def test_a_result_is_told_before_whoever_awaits_it_goes_on(worker):
    seen = []
    future = worker.run(lambda: 3, at_once=lambda result: seen.append((result, future.done())))
    assert await future == 3
    assert seen == [(3, False)]
    with pytest.raises(KeyError):
        await worker.run(lambda: 3, at_once=lambda _result: fail(KeyError("no")))


async def test_a_result_that_nobody_awaits_any_more_is_not_told(worker):
    go, told = NotingEvent(), []
    future = worker.run(go.wait, 10, at_once=told.append)
    assert go.waited_for.wait(10)
    future.cancel()
    go.set()
    await worker.run(lambda: None)
    assert told == []


async def test_what_is_cancelled_before_its_turn_never_begins(worker):
    go, begun = NotingEvent(), []
    first = worker.run(go.wait, 10)
    second = worker.run(begun.append, 1)
    second.cancel()
    assert go.waited_for.wait(10)
    first.cancel()  # it is under way: its result comes and finds nobody
    go.set()
    await worker.run(lambda: None)
    assert begun == []


async def test_a_worker_holds_nothing_while_it_waits(worker):
    class Images:
        pass

    images = Images()
    gone = weakref.ref(images)
    await worker.run(lambda _images: None, images)
    del images
    ended = worker.run(threading.Event)  # its end says that the thread has let go of the work before
    await ended
    assert gone() is None


def test_a_result_that_comes_after_the_loop_has_ended_is_dropped():
    go, ended, worker = threading.Event(), threading.Event(), Worker("late")

    async def begin():
        worker.run(go.wait, 10)

    asyncio.run(begin())
    go.set()
    asyncio.run(asyncio.wait_for(_run(worker, ended.set), 10))
    worker.close()
    assert ended.is_set()


async def _run(worker, function):
    return await worker.run(function)
