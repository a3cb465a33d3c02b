"""The metrics of all processes, as the engine process collects them; the test is its only HTTP process."""

import asyncio
import os
import re
import socket

import pytest

from app.processes import engine_process
from app.processes.engine_process import EngineProcessService
from app.processes.frames import Kind
from app.processes.key_counts import SharedInFlight
from app.processes.link import Link
from app.processes.process_metrics import merged_metrics, metrics_snapshot
from app.settings import Settings
from app.telemetry import Telemetry

pytestmark = pytest.mark.anyio


class HttpProcess:
    """Tells its metrics when the test says so; `asked` is how often it was asked for them."""

    def __init__(self):
        self.telemetry = Telemetry()
        self.asked = 0
        self.link = Link({Kind.COLLECT: self._collect}, lambda: None)

    def _collect(self, _payload):
        self.asked += 1

    def answer(self):
        self.telemetry.record_answer("/livez", 200, 0.0)

    def tell(self):
        self.link.send(Kind.SNAPSHOT, metrics_snapshot(self.telemetry.registry))


@pytest.fixture
async def joined():
    service, process = EngineProcessService(Settings(http_processes=2)), HttpProcess()
    service.closing = True  # an end by itself is no failure of the service here
    worker = service.http_processes[0]
    ours, its = socket.socketpair()
    await worker.link.open(ours)
    await process.link.open(its)
    worker.serving.set()
    yield service, process
    await process.link.close()
    await worker.link.close()
    os.close(service.shared.file)


def answers(metrics):
    """How many answers these count."""
    found = re.search(rb'^resnet_requests_total\{route="/livez",status="200"\} (\S+)$', metrics, re.M)
    return float(found[1]) if found else 0


async def test_a_scrape_while_a_process_stands_still_has_its_last_numbers_and_the_next_one_its_own(joined, monkeypatch):
    service, process = joined
    monkeypatch.setattr(engine_process, "SNAPSHOT_TIMEOUT_S", 600.0)

    async def asked():
        """A scrape for which the process has been asked."""
        before = process.asked
        scrape = asyncio.ensure_future(service.metrics())
        while process.asked == before:
            await asyncio.sleep(0)
        return scrape

    process.answer()
    scrape = await asked()
    process.tell()
    assert answers(await scrape) == 1

    with monkeypatch.context() as patch:
        patch.setattr(engine_process, "SNAPSHOT_TIMEOUT_S", 0.0)
        for _ in range(2):
            process.answer()
            assert answers(await service.metrics()) == 1

    scrape = await asked()
    for _ in range(2):  # as it goes on, it tells those who have given up on it first
        process.tell()
    while answers(merged_metrics(b"[]", [service.http_processes[0].snapshot])) != 3:
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert not scrape.done()
    process.answer()
    process.tell()
    assert answers(await scrape) == 4


async def test_what_a_process_had_under_way_burdens_no_other_one_once_it_has_ended(joined):
    """In a drain, in which the others go on serving, as before."""
    service, process = joined
    shared, keys = service.shared, SharedInFlight(service.shared.keys, 0)
    keys.know({"me"})
    assert keys.begin("me", 1)
    assert not keys.begin("me", 1)
    shared.count_admitted(0, 3)
    shared.count_admitted(1, 4)
    await process.link.close()
    await service.http_processes[0].link.lost.wait()
    assert shared.load().queued_images == 4
    others = SharedInFlight(shared.keys, 1)
    others.know({"me"})
    assert others.begin("me", 1)
