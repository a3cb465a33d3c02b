"""Work in threads. The event loop survives whatever ends it."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from queue import SimpleQueue
from typing import TypeVar

Result = TypeVar("Result")


class ThreadDied(Exception):
    """What ended the work was no Exception: SystemExit, or a panic of a library written in Rust."""


def in_thread(pool: Executor, function: Callable[..., Result], /, *arguments: object) -> asyncio.Future[Result]:
    """Run `function(*arguments)` in a thread of `pool`.

    Awaiting the result raises what the function raised, or ThreadDied in place of what no handler of Exception would
    catch: on the event loop SystemExit ends the process in the midst of everything.
    """
    return asyncio.get_running_loop().run_in_executor(pool, contain, function, *arguments)


def contain(function: Callable[..., Result], *arguments: object) -> Result:
    """Call a function in a thread. Raises what it raises, but ThreadDied for what is no Exception."""
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        raise ThreadDied(type(error).__name__) from error


class Worker:
    """One daemon thread of lower priority that does pieces of work in turn.

    A daemon, so that a device that hangs cannot block the process' exit, which waits for an executor's threads. It is
    also quicker: with an executor's two futures, four locks and another turn of the event loop, from the loop to the
    thread and back took 78 us, and takes 60 so. A request that is alone waits that long.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._begun = False

    def start(self) -> None:
        """Start the thread, unless it has begun: the first `run` does. Raises RuntimeError if the system has none."""
        if not self._begun:
            threading.Thread(target=self._do_all, name=self._name, daemon=True).start()
            self._begun = True

    def run(
        self,
        function: Callable[..., Result],
        /,
        *arguments: object,
        at_once: Callable[[Result], None] = lambda _result: None,
    ) -> asyncio.Future[Result]:
        """Do what `in_thread` does; work that is cancelled before its turn never begins.

        `at_once` is called on the event loop with the result, two turns earlier than whoever awaits the future goes on;
        what it raises, the future does.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()

        def work() -> None:
            if future.cancelled():
                return
            try:
                result = contain(function, *arguments)
            except Exception as error:
                settle(loop, _fail, future, error)
            else:
                settle(loop, _succeed, future, result, at_once)

        self.start()
        self._work.put(work)
        return future

    def close(self) -> None:
        """Let the thread end after the work that it has been given, without waiting for it."""
        self._work.put(None)

    def _do_all(self) -> None:
        lower_priority()
        while (work := self._work.get()) is not None:
            work()
            del work  # it holds images and answers, and the next one may be long in coming


def settle(loop: asyncio.AbstractEventLoop, callback: Callable[..., None], *arguments: object) -> None:
    """Call `callback(*arguments)` on a loop, from a thread; never if the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *arguments)


def _succeed(future: asyncio.Future[Result], result: Result, at_once: Callable[[Result], None]) -> None:
    if future.done():
        return
    try:
        at_once(result)
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


def _fail(future: asyncio.Future[Result], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)


# Of Linux' 19: a third of the share of another thread that wants the same core.
NICENESS = 5


def lower_priority() -> None:
    """Lower the priority of this thread, and of those that it starts from now on; Linux only.

    For threads that compute: milliseconds matter to clients and probes, and next to nothing to a batch.
    """
    if sys.platform != "linux":  # elsewhere it would hold for the whole process
        return
    thread = threading.get_native_id()
    if os.getpriority(os.PRIO_PROCESS, thread) < NICENESS:  # else a service that was started behind others stays there
        os.setpriority(os.PRIO_PROCESS, thread, NICENESS)
