"""An HTTP process' stand-in and the engine process' end, joined by a real socket, around a real batcher."""

import asyncio
import math
import os
import socket
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest

from app.errors import ClientGone, DeadlinePassed, EngineFailed, NotReady, QueueFull
from app.processes.engine_process import EngineProcessService
from app.processes.frames import Kind
from app.processes.key_counts import SharedInFlight
from app.processes.link import Link
from app.processes.remote import RemoteBatcher
from app.processes.shared_state import SharedState
from app.routes.health import describe
from app.settings import Settings
from tests.fakes import FakeEngine, rounded_probabilities

pytestmark = pytest.mark.anyio


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


class Pair:
    """The host with its batcher, and `remote`, the stand-in of its first HTTP process."""

    def __init__(self, engine, **settings):
        given = {"http_processes": 2, "batch_sizes": "1,2,4", "max_images": 4} | settings
        self.settings = Settings(**given)
        engine.batch_sizes = self.settings.batch_sizes
        self.host = EngineProcessService(self.settings, lambda _settings: engine)
        self.shared = SharedState(self.host.shared.file, 2)
        self.remote = RemoteBatcher(self.shared, 0, self.settings, self.send)
        handlers = {Kind.ANSWER: self.remote.on_answer, Kind.REFUSAL: self.remote.on_refusal}
        self.statuses = []
        self.link = Link({**handlers, Kind.STATUS: self.statuses.append}, self.remote.lose)

    def send(self, packed):
        self.link.send_frame(packed)

    async def open(self):
        ours, theirs = socket.socketpair()
        other, self.other_end = socket.socketpair()
        for process, end in zip(self.host.http_processes, (ours, other), strict=True):
            await process.link.open(end)
            process.serving.set()
        await self.link.open(theirs)
        await self.host.start()
        await self.host._loading

    async def close(self):
        for link in (self.link, *(process.link for process in self.host.http_processes)):
            if not link.lost.is_set():
                await link.close()
        self.other_end.close()
        os.close(self.shared.file)

    @property
    def batcher(self):
        return self.host.predictor.batcher

    def submit(self, images, seconds=30.0):
        deadline = time.monotonic() + seconds
        return self.remote.submit(self.remote.admit(len(images), math.inf), images, deadline)


@asynccontextmanager
async def joined(engine, **settings):
    pair = Pair(engine, **settings)
    await pair.open()
    try:
        yield pair
    finally:
        engine.release()
        pair.host.closing = True
        await pair.host.stop()
        await pair.close()


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def occupied(engine, pair):
    """Fill the engine with one image, so that what follows has to queue."""
    engine.hold()
    first = pair.submit(pictures(1)).future
    assert await asyncio.to_thread(engine.entered.wait, 10)
    await until(lambda: pair.remote.queued_images == 0)
    return first


async def test_answers_are_the_engines_and_keep_their_owner():
    engine = FakeEngine()
    async with joined(engine) as pair:
        requests = [pictures(count, seed=count) for count in (1, 4, 2, 3)]
        outcomes = await asyncio.gather(*(pair.submit(images).future for images in requests))
        for images, outcome in zip(requests, outcomes, strict=True):
            np.testing.assert_array_equal(outcome.probabilities, rounded_probabilities(images))
            assert outcome.model == {"name": "fake", "version": "0123456789ab"}
            assert outcome.inference_s > 0
        assert pair.remote.queued_images == 0
        assert sum(engine.batches) == 10


async def test_places_count_from_admission_until_a_batch_begins():
    engine = FakeEngine()
    async with joined(engine) as pair:
        first = await occupied(engine, pair)
        ticket = pair.remote.admit(4, math.inf)
        assert pair.remote.queued_images == 4
        assert pair.host.queued_images() == 4
        assert describe(pair.host).queue_images == 4
        job = pair.remote.submit(ticket, pictures(3), time.monotonic() + 30)  # one could not be decoded
        assert pair.remote.queued_images == 3
        await until(lambda: pair.batcher.queued_images == 3)
        assert pair.remote.queued_images == 3
        ticket.release()
        assert pair.remote.queued_images == 3
        engine.release()
        await asyncio.gather(first, job.future)
        assert pair.remote.queued_images == 0


async def test_what_cannot_be_sent_leaves_its_places_with_the_request(monkeypatch):
    def no_memory(*_):
        raise MemoryError

    async with joined(FakeEngine()) as pair:
        ticket = pair.remote.admit(4, math.inf)
        with monkeypatch.context() as patch:
            patch.setattr("app.processes.remote.pack_submission", no_memory)
            with pytest.raises(MemoryError):
                pair.remote.submit(ticket, pictures(3), time.monotonic() + 30)
        ticket.release()
        assert pair.remote.queued_images == 0
        assert pair.shared.in_flight_images() == 0
        await pair.submit(pictures(1)).future


async def test_what_there_is_no_room_for_is_refused_here():
    engine = FakeEngine()
    async with joined(engine, max_queue_images=6) as pair:
        first = await occupied(engine, pair)
        pair.shared.count_admitted(1, 4)  # the other HTTP process is decoding them
        pair.remote.require_room(2, math.inf)
        with pytest.raises(QueueFull):
            pair.remote.admit(3, math.inf)
        pair.shared.count_admitted(1, -4)
        engine.release()
        await first


async def test_what_slips_through_is_refused_there_with_the_same_error():
    engine = FakeEngine()
    async with joined(engine, max_queue_images=6) as pair:
        first = await occupied(engine, pair)
        tickets = [pair.remote.admit(3, math.inf) for _ in range(2)]
        ticket = pair.batcher.admit(2, math.inf)  # the engine has got others meanwhile
        jobs = [pair.remote.submit(one, pictures(3), time.monotonic() + 30) for one in tickets]
        waiting = [job.future for job in jobs]
        with pytest.raises(QueueFull) as refused:
            await waiting[1]
        assert refused.value.retry_after_s >= 1
        assert pair.batcher.queued_images == 5
        assert pair.shared.in_flight_images() == 0
        ticket.release()
        engine.release()
        await asyncio.gather(first, waiting[0])


@pytest.mark.parametrize("reason", ["deadline", "client", "cancelled"])
async def test_images_that_nobody_waits_for_are_cancelled_before_they_cost_anything(reason):
    engine = FakeEngine()
    async with joined(engine) as pair:
        first = await occupied(engine, pair)
        job = pair.submit(pictures(2), seconds=0.05 if reason == "deadline" else 30)
        job.when_ended(lambda _job: None)  # as a request of the fast path does
        waiting = job.future
        await until(lambda: pair.batcher.queued_images == 2 or waiting.done())
        if reason == "client":
            job.abandon()
        elif reason == "cancelled":
            waiting.cancel()
        error = {"deadline": DeadlinePassed, "client": ClientGone, "cancelled": asyncio.CancelledError}[reason]
        with pytest.raises(error):
            await waiting
        await until(lambda: pair.batcher.queued_images == 0)
        await until(lambda: pair.remote.queued_images == 0)
        assert list(pair.host.http_processes[0]._jobs) == [1]
        engine.release()
        await first
        await pair.submit(pictures(1)).future
        assert engine.batches == [1, 1]


async def test_when_the_engine_process_ends_all_that_waits_fails_and_nothing_more_is_taken():
    engine = FakeEngine()
    async with joined(engine) as pair:
        first = await occupied(engine, pair)
        waiting = pair.submit(pictures(1)).future
        ticket = pair.remote.admit(1, math.inf)
        pair.host.closing = True
        await pair.host.http_processes[0].link.close()
        for one in (first, waiting):
            with pytest.raises(EngineFailed):
                await one
        assert not pair.remote.alive
        with pytest.raises(EngineFailed):
            pair.remote.admit(1, math.inf)
        with pytest.raises(EngineFailed):
            pair.remote.submit(ticket, pictures(1), time.monotonic() + 30)


async def test_when_the_http_process_ends_its_images_cost_nothing_and_the_service_fails():
    engine = FakeEngine()
    async with joined(engine) as pair:
        first = await occupied(engine, pair)
        first.add_done_callback(lambda one: one.exception())
        waiting = pair.submit(pictures(3)).future
        waiting.add_done_callback(lambda one: one.exception())
        await until(lambda: pair.batcher.queued_images == 3)
        own, others = (SharedInFlight(pair.shared.keys, index) for index in (0, 1))
        for one in (own, others):
            one.know(["key"])
        assert own.begin("key", 1)
        assert not others.begin("key", 1)
        await pair.link.close()
        await until(lambda: pair.batcher.queued_images == 0)
        assert others.begin("key", 1)
        assert pair.host.lifecycle.exit_code == 1
        engine.release()
        await pair.batcher.submit(pair.batcher.admit(1, math.inf), pictures(1), time.monotonic() + 30).future
        assert engine.batches == [1, 1]


async def test_a_decoder_that_hangs_in_any_process_makes_the_service_unready():
    async with joined(FakeEngine(), stall_timeout_s=5) as pair:
        pair.shared.beat(1, 4.0)
        assert pair.host.unready_reason() is None
        pair.shared.beat(1, 6.0)
        assert pair.host.stalled() == "the decoder makes no progress"
        pair.statuses.clear()
        await until(lambda: any(b'"stalled": "the decoder makes no progress"' in one for one in pair.statuses))
        pair.shared.beat(1, 0.0)
        assert pair.host.unready_reason() is None


async def test_one_process_that_hangs_makes_the_others_unready_only_after_the_stalls_own_time(monkeypatch):
    monkeypatch.setattr("app.service.MIN_STALL_S", 0.001)
    async with joined(FakeEngine(), stall_timeout_s=5, timeout_ms=10) as pair:
        pair.shared.beat(1, 4.0)  # the others still answer
        assert pair.host.unready_reason() is None


@pytest.mark.parametrize("stopped", ["both", "one"])
async def test_when_all_hang_the_service_is_unready_once_their_requests_have_expired(monkeypatch, stopped):
    monkeypatch.setattr("app.service.MIN_STALL_S", 2)
    async with joined(FakeEngine(), stall_timeout_s=50, timeout_ms=10) as pair:
        silent_s = [4.0, 4.0 if stopped == "both" else 0.0]
        monkeypatch.setattr(pair.host.shared, "silent_s", silent_s.__getitem__)
        if stopped == "one":
            assert pair.host.unready_reason() is None
            pair.shared.beat(1, 4.0)
        assert pair.host.unready_reason() == "an HTTP process makes no progress"
        assert pair.host.stalled() is None  # that is no matter of a restart yet
        pair.shared.beat(1, 0.0)
        silent_s[1] = 0.0
        assert pair.host.unready_reason() is None


async def test_files_that_any_process_could_not_read_again_are_told_of():
    async with joined(FakeEngine()) as pair:
        pair.link.send(Kind.FILES_REFUSED, b'["keys"]')
        await until(lambda: pair.host.reloads.files_refused == ["keys"])
        pair.statuses.clear()
        await until(lambda: any(b'"files_refused": ["keys"]' in one for one in pair.statuses))
        pair.link.send(Kind.FILES_REFUSED, b"[]")
        await until(lambda: pair.host.reloads.files_refused == [])


async def test_a_failed_service_refuses_what_still_arrives():
    engine = FakeEngine()
    async with joined(engine) as pair:
        ticket = pair.remote.admit(1, math.inf)
        pair.host.lifecycle.fail("broken", "broken")
        with pytest.raises(NotReady):
            await pair.remote.submit(ticket, pictures(1), time.monotonic() + 30).future


async def test_the_other_processes_hear_of_ready_before_anybody_can_ask():
    engine = FakeEngine()
    pair = Pair(engine)
    ready_when_told = []
    pair.link._handlers[Kind.STATUS] = ready_when_told.append
    await pair.open()
    assert pair.host.unready_reason() is None
    await until(lambda: any(b'"state": "ready"' in one for one in ready_when_told))
    pair.host.closing = True
    await pair.host.stop()
    await pair.close()


async def test_what_was_answered_is_not_taken_off_what_is_being_decoded():
    async with joined(FakeEngine()) as pair:
        for seed in range(3):
            await pair.submit(pictures(2, seed)).future
        ticket = pair.remote.admit(4, math.inf)
        assert pair.remote.queued_images == 4
        ticket.release()


async def test_who_asks_for_metrics_while_they_are_collected_gets_the_same(monkeypatch):
    async with joined(FakeEngine()) as pair:
        asked = []
        process = pair.host.http_processes[0]
        process.serving.set()
        monkeypatch.setattr(process, "request_snapshot", lambda: asked.append(asyncio.Future()) or asked[-1])
        crowd = [asyncio.ensure_future(pair.host.metrics()) for _ in range(20)]
        await until(lambda: asked)
        crowd[0].cancel()  # the others' answer does not go with the one who leaves
        asked[0].set_result(None)
        answers = await asyncio.gather(*crowd[1:])
        assert len(asked) == 1
        assert set(answers) == {answers[0]}
        assert b"resnet_ready" in answers[0]
        again = asyncio.ensure_future(pair.host.metrics())
        await until(lambda: len(asked) == 2)
        asked[1].set_result(None)
        assert await again
