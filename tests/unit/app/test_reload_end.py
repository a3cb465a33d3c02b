"""The end of a service while a reload is under way, and by one."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.engine_errors import EngineBroken
from app.engine_service import EngineService
from app.lifecycle import State
from app.reload import Reloader, ReloadOutcome
from app.settings import Settings
from app.telemetry import Telemetry
from tests.fakes import FakeEngine


class HangingEngine(FakeEngine):
    """As on a device that does not answer any more: what it holds is never given back."""

    def __init__(self, released):
        super().__init__(shift=1)
        self.released = released

    def close(self):
        self.released.wait()


class Predictor:
    """What is served; the batch before a swap never ends."""

    def __init__(self):
        self.engine = FakeEngine()
        self.card = self.engine.card
        self.asked = asyncio.Event()

    async def swap_engine(self, _engine):
        self.asked.set()
        await asyncio.Event().wait()


@pytest.mark.anyio
async def test_an_engine_that_does_not_let_go_keeps_nobody_from_the_end(monkeypatch):
    monkeypatch.setattr("app.reload.LET_GO_S", 0.01)
    released, predictor = threading.Event(), Predictor()
    pool = ThreadPoolExecutor(1)
    reloader = Reloader(
        lambda: HangingEngine(released), pool, Telemetry(), sha256_of_file=lambda: "another", on_broken=pytest.fail
    )
    reloader.begin(predictor)
    await asyncio.wait_for(predictor.asked.wait(), 10)
    await asyncio.wait_for(reloader.close(), 10)
    assert reloader.running
    released.set()
    await asyncio.wait_for(asyncio.wait({reloader._task}), 10)
    pool.shutdown()


@pytest.mark.anyio
async def test_an_engine_that_breaks_what_the_process_has_ends_the_service():
    def breaks(_settings):
        raise EngineBroken("the CUDA context is lost")

    service = EngineService(Settings(), breaks)
    service.lifecycle.mark_ready()
    service.reloader.begin(Predictor())
    await asyncio.wait_for(asyncio.wait({service.reloader._task}), 10)
    assert service.lifecycle.state is State.FAILED
    assert service.lifecycle.reason == "the engine failed"
    assert service.reloader.outcome is ReloadOutcome.REFUSED
    service._loader.shutdown()
