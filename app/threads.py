"""Work in threads whose end the event loop survives, whatever it is."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

Result = TypeVar("Result")


class ThreadDied(Exception):
    """What ended the work was no Exception: SystemExit, or a panic of a library written in Rust."""


def in_thread(pool: Executor, function: Callable[..., Result], /, *arguments: object) -> asyncio.Future[Result]:
    """Run `function(*arguments)` in a thread of `pool`.

    Awaiting the result raises what the function raised, or ThreadDied in place of what no handler of Exception would
    catch: on the event loop SystemExit ends the process in the midst of everything.
    """
    return asyncio.get_running_loop().run_in_executor(pool, _contain, function, *arguments)


def _contain(function: Callable[..., Result], *arguments: object) -> Result:
    try:
        return function(*arguments)
    except Exception:
        raise
    except BaseException as error:
        raise ThreadDied(type(error).__name__) from error


# Of Linux' 19: a third of the share of another thread that wants the same core.
STEP_BACK = 5


def step_back() -> None:
    """Let other threads go first on a busy core, this one and those that it starts after them; Linux only.

    For threads that compute: what keeps clients and probes waiting for milliseconds costs a batch next to nothing.
    """
    if sys.platform == "linux":  # elsewhere it would hold for the whole process
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), STEP_BACK)
