"""What the service of a process with an engine does beside answering."""

import asyncio

import pytest

from app import watchers
from app.engine_service import EngineService
from app.settings import Settings
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
