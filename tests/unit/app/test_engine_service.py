"""What the service of a process with an engine does beside answering."""

import asyncio
import threading

import pytest

from app import watchers
from app.engine_errors import EngineOutOfMemory
from app.engine_service import EngineService
from app.errors import EngineFailed
from app.settings import Settings
from tests.batchers import pictures, submit
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


class Expiring:
    """A certificate that says when it has been looked at so often."""

    expires_at = 0.0

    def __init__(self, looks):
        self.left = looks
        self.seen = asyncio.Event()

    def warn_of_expiry(self):
        self.left -= 1
        if not self.left:
            self.seen.set()


async def test_a_certificate_that_is_not_renewed_is_warned_of_though_no_file_changes(monkeypatch):
    monkeypatch.setattr(watchers, "EXPIRY_LOOK_S", 0)
    service = EngineService(Settings(watch_files_s=0), lambda _settings: FakeEngine())
    service.certificate = Expiring(looks=3)
    await service.start()
    await asyncio.wait_for(service.certificate.seen.wait(), 10)
    await service.stop()


async def test_it_is_unready_from_the_second_failure_in_a_row_until_a_batch_works(monkeypatch):
    monkeypatch.setattr("app.batching.engine_failures.PROBE_AFTER_S", 3600.0)
    engine = FakeEngine()
    service = EngineService(Settings(), lambda _settings: engine)
    await service.start()
    await service._loading
    batcher = service.predictor.batcher
    for reason in (None, "the engine fails"):
        engine.errors = [EngineOutOfMemory()]
        with pytest.raises(EngineFailed):
            await submit(batcher, pictures(1))
        assert service.unready_reason() == reason
        assert f"resnet_ready {0 if reason else 1}.0" in (await service.metrics()).decode()
    assert service.stalled() is None  # a restart is not asked for
    await submit(batcher, pictures(1))
    assert service.unready_reason() is None
    await service.stop()


async def test_memory_is_given_back_after_work_and_once_each_time(monkeypatch):
    given, looks = [], []
    monkeypatch.setattr(watchers, "IDLE_S", 0.01)
    monkeypatch.setattr("app.engine_service.give_back_memory", lambda: given.append(threading.current_thread().name))
    service = EngineService(Settings(), FakeEngine)
    monkeypatch.setattr(service, "_load_engine", FakeEngine)
    ask = service.last_progress
    monkeypatch.setattr(service, "last_progress", lambda: looks.append(True) or ask())

    async def looked_until(done):
        async with asyncio.timeout(30):
            while not done():
                await asyncio.sleep(0.01)

    await service.start()
    await service._loading
    await looked_until(lambda: len(given) == 2)  # what was loaded left some, too
    await submit(service.predictor.batcher, pictures(1))
    await looked_until(lambda: len(given) == 3)
    before = len(looks)
    await looked_until(lambda: len(looks) > before + 5)
    assert len(given) == 3
    assert all(name.startswith("load") for name in given)  # not the event loop, which it would hold up
    await service.stop()
