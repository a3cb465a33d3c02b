"""The service of an HTTP process, in this process; the test is the engine process."""

import asyncio
import json
import math
import os
import socket
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from app.batching.admission import Load
from app.errors import EngineFailed, NotReady
from app.lifecycle import State
from app.processes import http_service
from app.processes.frames import Kind, pack_with_id, unpack_with_id
from app.processes.http_service import HttpService
from app.processes.link import Link
from app.processes.shared_state import SharedState
from app.settings import Settings
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

STATUS = {"reason": None, "started": 0.0, "stalled": None, "unready": None, "card": None}
RELOADS = {"running": False, "finished": 0, "outcome": None, "ended_at": None}
CARD = FakeEngine().card


class Engine:
    """The engine process' end: `heard` has what comes, by its kind."""

    def __init__(self, shared):
        self.shared = shared
        self.heard = {kind: asyncio.Queue() for kind in Kind}
        self.link = Link({kind: heard.put_nowait for kind, heard in self.heard.items()}, lambda: None)

    def tell(self, **status):
        self.shared.publish(Load(0, 0, 0.0, 0), 0.0)
        self.link.send(Kind.STATUS, json.dumps({**STATUS, "reloads": RELOADS, **status}).encode())

    async def scrape(self):
        """Return the number of the next scrape."""
        return unpack_with_id(await self.heard[Kind.SCRAPE].get())[0]

    def answer(self, scrape):
        self.link.send_frame(pack_with_id(Kind.METRICS, scrape, b"numbers of %d" % scrape))


@asynccontextmanager
async def joined(**settings):
    ours, its = socket.socketpair()
    shared = SharedState.create(2)
    service, engine = HttpService(Settings(http_processes=2, **settings), its, shared, 0), Engine(shared)
    await service.start()
    await engine.link.open(ours)
    try:
        async with asyncio.timeout(30):
            yield service, engine
    finally:
        await service.stop()
        await engine.link.close()
        os.close(shared.file)


async def told(service, engine, **status):
    """Tell it, and wait until it is known."""
    started = service.lifecycle.started + 1
    engine.tell(**{"state": State.READY, "card": CARD, "started": started} | status)
    while service.lifecycle.started != started:
        await asyncio.sleep(0)


@pytest.mark.parametrize("state", [State.STARTING, State.READY, State.DRAINING, State.FAILED])
async def test_it_ends_with_the_engine_process_whatever_that_said_before(state):
    async with joined() as (service, engine):
        asked_to_end = asyncio.Event()
        service.lifecycle.on_failure = asked_to_end.set
        engine.tell(state=state)
        await engine.link.close()
        await asked_to_end.wait()
        assert service.lifecycle.exit_code == 1


async def test_what_waits_for_the_engine_process_as_it_ends_fails_at_once(monkeypatch):
    monkeypatch.setattr(http_service, "SCRAPE_TIMEOUT_S", 600.0)
    async with joined() as (service, engine):
        await told(service, engine)
        batcher, image = service.predictor.batcher, np.zeros((1, 3, 8, 8), np.uint8)
        job = batcher.submit(batcher.admit(1, math.inf), image, time.monotonic() + 600)
        scrape = asyncio.ensure_future(service.metrics())
        await engine.scrape()
        await engine.link.close()
        with pytest.raises(EngineFailed):
            await job.future
        with pytest.raises(NotReady):
            await scrape
        assert service.unready_reason() == "the engine process has ended"


async def test_metrics_come_for_each_scrape_also_before_anything_is_ready():
    async with joined() as (service, engine):
        scrapes = [asyncio.ensure_future(service.metrics()) for _ in range(2)]
        numbers = [await engine.scrape() for _ in scrapes]
        for number in reversed(numbers):
            engine.answer(number)
        assert await asyncio.gather(*scrapes) == [b"numbers of %d" % number for number in numbers]
        assert service.unready_reason() is not None


async def test_a_scrape_without_an_answer_is_refused_and_a_late_answer_is_nobodys(monkeypatch):
    async with joined() as (service, engine):
        with monkeypatch.context() as patch:
            patch.setattr(http_service, "SCRAPE_TIMEOUT_S", 0.0)
            with pytest.raises(NotReady):
                await service.metrics()
        engine.answer(await engine.scrape())
        scrape = asyncio.ensure_future(service.metrics())
        engine.answer(number := await engine.scrape())
        assert await scrape == b"numbers of %d" % number
        assert service._scrapes == {}


async def test_its_own_end_is_no_failure_and_leaves_its_numbers():
    async with joined() as (service, engine):
        await told(service, engine)
        service.telemetry.record_answer("/livez", 200, 0.0)
        await service.stop()
        assert (service.lifecycle.state, service.lifecycle.exit_code) == (State.STOPPED, 0)
        families = json.loads(await engine.heard[Kind.SNAPSHOT].get())
        samples = [sample for _, _, _, samples in families for sample in samples]
        assert ["resnet_requests_total", {"route": "/livez", "status": "200"}, 1.0] in samples
        assert "beat" not in {task.get_name() for task in asyncio.all_tasks()}


async def test_it_goes_on_saying_that_it_is_alive():
    async with joined() as (service, engine):
        for _ in range(2):
            beat = asyncio.Event()
            service.on_beat = beat.set
            await beat.wait()
        assert engine.shared.silent_s(0) < 60


async def test_what_hangs_in_another_process_is_known_here():
    async with joined() as (service, engine):
        await told(service, engine)
        assert (service.stalled(), service.unready_reason()) == (None, None)
        await told(service, engine, stalled="the engine hangs", unready="nothing works")
        assert (service.stalled(), service.unready_reason()) == ("the engine hangs", "the engine hangs")
        await told(service, engine, unready="nothing works")
        assert (service.stalled(), service.unready_reason()) == (None, "nothing works")


@pytest.mark.parametrize(
    ("engine_s", "decoder_s", "reason"),
    [
        (0.9, 0.4, None),  # the engine process may be late by a second
        (1.1, 0.4, "the engine process makes no progress"),
        (0.9, 0.6, "the decoder makes no progress"),
    ],
)
async def test_its_log_tells_of_what_the_engine_process_cannot_tell(monkeypatch, engine_s, decoder_s, reason):
    async with joined(stall_timeout_s=0.5) as (service, engine):
        await told(service, engine, unready="told there")
        monkeypatch.setattr(SharedState, "engine_silent_s", engine_s)
        monkeypatch.setattr(service.predictor.decoder, "stalled_s", lambda: decoder_s)
        assert service._own_unready_reason() == reason


async def test_another_checkpoint_is_named_once_it_serves():
    async with joined() as (service, engine):
        for card in (CARD, FakeEngine(shift=1).card):
            await told(service, engine, card=card)
            assert service.predictor.card == card
            assert service.predictor.batcher.model == {"name": card["name"], "version": card["version"]}


async def test_there_is_a_thread_to_decode_in_however_few_the_processes_share():
    async with joined(decode_threads=1) as (service, engine):
        await told(service, engine)
        assert service.predictor.decoder._pool.threads == 1


async def test_the_engine_process_is_told_of_a_file_that_could_not_be_read_again(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"me:{'0' * 64}\n")
    async with joined(api_keys_file=file) as (service, engine):
        for text, refused in (("no key\n", b'["keys"]'), (f"you:{'1' * 64}\n", b"[]")):
            file.write_text(text)
            service.read_files_again()
            assert await engine.heard[Kind.FILES_REFUSED].get() == refused
