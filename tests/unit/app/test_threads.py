"""Threads that compute step back: they and the threads that they start, and nobody else."""

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.threads import STEP_BACK, step_back


def niceness():
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def niceness_of_a_child():
    found = []
    child = threading.Thread(target=lambda: found.append(niceness()))
    child.start()
    child.join()
    return found[0]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a niceness is the whole process's")
def test_a_pool_that_steps_back_does_so_alone_and_with_its_children():
    before = niceness()
    with ThreadPoolExecutor(1, initializer=step_back) as pool:
        assert pool.submit(niceness).result() == STEP_BACK
        assert pool.submit(niceness_of_a_child).result() == STEP_BACK
    assert niceness() == before < STEP_BACK
