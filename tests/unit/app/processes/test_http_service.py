"""The service of an HTTP process, in this process; the test is the engine process."""

import asyncio
import json
import os
import socket

import pytest

from app.lifecycle import State
from app.processes.frames import Kind
from app.processes.http_service import HttpService
from app.processes.link import Link
from app.processes.shared_state import SharedState
from app.settings import Settings

pytestmark = pytest.mark.anyio

STATUS = {"reason": None, "started": 0.0, "stalled": None, "unready": None, "card": None}
RELOADS = {"running": False, "finished": 0, "outcome": None, "ended_at": None}


@pytest.mark.parametrize("state", [State.STARTING, State.READY, State.DRAINING, State.FAILED])
async def test_it_ends_with_the_engine_process_whatever_that_said_before(state):
    ours, its = socket.socketpair()
    shared = SharedState.create(2)
    service = HttpService(Settings(http_processes=2), its, shared, 0)
    asked_to_end = asyncio.Event()
    service.lifecycle.on_failure = asked_to_end.set
    await service.start()
    engine = Link({}, lambda: None)
    await engine.open(ours)
    engine.send(Kind.STATUS, json.dumps({**STATUS, "state": state, "reloads": RELOADS}).encode())
    await engine.close()
    await asyncio.wait_for(asked_to_end.wait(), 30)
    assert service.lifecycle.exit_code == 1
    await service.stop()
    os.close(shared.file)
