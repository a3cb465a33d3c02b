"""Every time that the service tells of is what it is called, in the unit that it is called."""

import asyncio
import itertools
import math
import re
import time
from types import SimpleNamespace

import pytest

from app import imaging
from tests.api.conftest import serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}
PICTURE = encode(noise())
PICTURES = {"fast_predict": PICTURE, "predict": PICTURE + bytes(100_000)}  # by the room that answers
BATCH_S = 0.05


class SlowEngine(FakeEngine):
    def run(self, images):
        answer = super().run(images)
        time.sleep(BATCH_S)
        return answer


async def metrics_of(client):
    lines = (await client.get("/metrics")).text.splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def timing_ms(answer):
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
async def test_times_of_requests_and_batches(picture):
    """The second request waits for the first one's batch, and they take no longer than their client sees."""
    engine = SlowEngine()
    async with serving(engine) as client:
        engine.hold()
        began = time.monotonic()
        first = asyncio.ensure_future(client.post("/predict", content=picture, headers=PNG))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        second = asyncio.ensure_future(client.post("/predict", content=picture, headers=PNG))
        while (await metrics_of(client))["resnet_decode_seconds_count"] < 2:  # it is queued at once then
            await asyncio.sleep(0)
        engine.release()
        answers = await asyncio.gather(first, second)
        took_s = time.monotonic() - began
        metrics = await metrics_of(client)
    for answer in answers:
        told = timing_ms(answer)
        assert list(told) == ["decode", "queue", "inference"]
        assert told["inference"] >= 1000 * BATCH_S - 0.01  # they are rounded
        assert sum(told.values()) <= 1000 * took_s + 0.1
    assert timing_ms(answers[1])["queue"] >= 1000 * BATCH_S - 0.01
    assert BATCH_S <= metrics["resnet_queue_seconds_sum"] <= took_s
    assert 2 * BATCH_S <= metrics["resnet_inference_seconds_sum"] <= took_s
    assert 3 * BATCH_S <= metrics['resnet_request_seconds_sum{route="/predict"}'] <= 2 * took_s


async def test_times_of_decoding_on_the_spot(monkeypatch):
    clock = itertools.count(0, 0.25)  # decoding takes 0.25 s
    fake = SimpleNamespace(perf_counter=lambda: next(clock), monotonic=time.monotonic, sleep=time.sleep)
    monkeypatch.setattr("app.routes.fast_predict.time", fake)
    async with serving() as client:
        answer = await client.post("/predict", content=PICTURE, headers=PNG)
        assert timing_ms(answer)["decode"] == 250
        assert (await metrics_of(client))["resnet_decode_seconds_sum"] == 0.25


async def test_times_of_decoding_in_threads_are_those_of_all_threads(monkeypatch):
    began, took_s = float(math.ceil(time.monotonic())), 0.0  # without fractions, so that sums are exact

    def decode(*given, decode=imaging.decode):
        nonlocal took_s
        took_s += 0.25
        return decode(*given)

    monkeypatch.setattr("app.imaging.decode", decode)
    monkeypatch.setattr("app.decode_pool.time", SimpleNamespace(monotonic=lambda: began + took_s))
    async with serving(decode_threads=1) as client:
        answer = await client.post("/predict", files=[("file", PICTURE)] * 3)
        assert timing_ms(answer)["decode"] == 750
        assert (await metrics_of(client))["resnet_decode_seconds_sum"] == 0.75


async def test_the_uptime_is_that_of_the_service():
    before = time.monotonic()
    async with serving(SlowEngine()) as client:
        ready = time.monotonic()
        assert (await client.post("/predict", content=PICTURE, headers=PNG)).status_code == 200
        least_s = time.monotonic() - ready
        uptime_s = (await client.get("/health")).json()["uptime_s"]
        assert BATCH_S <= least_s <= uptime_s + 0.001  # it is rounded
        assert uptime_s <= time.monotonic() - before + 0.001
