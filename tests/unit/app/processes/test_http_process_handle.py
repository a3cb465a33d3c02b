"""The life of an HTTP process as the engine process sees it, over processes that are none of ours."""

import asyncio
import os
import signal
import subprocess
import sys
import threading

import pytest

from app.processes import http_process_handle
from app.processes.engine_process import EngineProcessService
from app.processes.http_process_handle import STALLED_BEATS
from app.settings import Settings

pytestmark = pytest.mark.anyio


@pytest.fixture
async def processes(monkeypatch):
    """Two, that have started the code of `processes.code`; what they inherit is argv[2:5]: link, channel, memory."""
    service = EngineProcessService(Settings(http_processes=2))
    service.closing = True  # an end by itself is no failure of the service here

    async def start(*codes):
        for process, code in zip(service.http_processes, codes, strict=False):

            def start_it(_settings, index, files, code=code):
                return subprocess.Popen([sys.executable, "-c", code, str(index), *map(str, files)], pass_fds=files)

            monkeypatch.setattr(http_process_handle, "start_process", start_it)
            await process.start(service.settings)
        return service.http_processes[: len(codes)]

    yield start
    for process in service.http_processes:
        process.kill()
        if process.channel is not None:
            process.close()
            await process.link.close()
    os.close(service.shared.file)


HANGS = "import time\nwhile True: time.sleep(3600)"
LETS_GO = "import os, sys, time\nos.closerange(3, 256)\nwhile True: time.sleep(3600)"


async def test_exit_codes_are_returned(processes):
    started = await processes("", "raise SystemExit(3)")
    assert await asyncio.gather(*(one.ended(30, 30) for one in started)) == [0, 3]


async def test_a_signals_number_is_returned(processes):
    (one,) = await processes(HANGS)
    one._process.send_signal(signal.SIGKILL)
    assert await one.ended(30, 30) == -signal.SIGKILL


async def test_a_stall_is_logged_once_and_none_that_is_over_with_the_next_beats(processes, monkeypatch, caplog):
    (one,) = await processes(HANGS)
    one.serving.set()
    for silent_s, beats in [(9.0, STALLED_BEATS - 1), (0.0, 1), (9.0, 3 * STALLED_BEATS), (0.0, 1)]:
        monkeypatch.setattr(one._shared, "silent_s", lambda _index, silent_s=silent_s: silent_s)
        for _ in range(beats):
            one.log_stall(5.0)
    assert [record.getMessage() for record in caplog.records] == [f"{one.name}: an HTTP process makes no progress"]
    assert one.name == f"HTTP process 0 (pid {one._process.pid})"


@pytest.mark.parametrize("code", [HANGS, LETS_GO])
async def test_one_that_does_not_end_is_killed_while_the_event_loop_goes_on(processes, monkeypatch, code):
    monkeypatch.setattr(http_process_handle, "LAST_S", 0.0)
    (one,) = await processes(code)
    waits_in, wait = set(), one._process.wait
    monkeypatch.setattr(one._process, "wait", lambda *given: waits_in.add(threading.get_ident()) or wait(*given))
    assert await one.ended(0.0 if code == HANGS else 30.0, 30.0) is None
    assert one._process.returncode == -signal.SIGKILL
    assert waits_in
    assert threading.get_ident() not in waits_in


async def test_one_that_does_not_end_has_less_time_once_the_service_has_failed(processes):
    (one,) = await processes(HANGS)
    ending = asyncio.ensure_future(one.ended(3600.0, 0.0))
    await asyncio.sleep(0)
    one._service.lifecycle.fail("broken", "broken")
    assert await ending is None
