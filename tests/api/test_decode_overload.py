"""More pictures than the threads can decode: what would come too late is refused, others take their turns."""

import asyncio
import io
import math
import threading
import time
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx
import numpy as np
import pytest

from tests.api.asking import PICTURE, assert_problem, post
from tests.api.conftest import serving
from tests.api.test_times import metrics_of, timing_ms
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

FAST = encode(noise(100, 100))  # a small body, too large a picture to be decoded on the spot
LARGE = encode(noise(256, 256))
WAYS = {"fast": FAST, "framework": LARGE}


async def until(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


def waiting_files(client):
    return client.app.state.service.predictor.decoder._pool._backlog.load().waiting_files


@pytest.fixture
def _slow(monkeypatch):
    """Files are thought to take a second for ten kilobytes."""
    monkeypatch.setattr("app.decode_pool.GUESSED_S_PER_BYTE", 1e-4)


@asynccontextmanager
async def busy_threads(held_decoding, body):
    """A client of a service whose one decoding thread is at a picture, while as many seconds of work wait as may."""
    async with serving(decode_threads=1, timeout_ms=600_000) as client:
        answers = [asyncio.ensure_future(post(client, body))]
        assert await asyncio.to_thread(held_decoding.begun.wait, 10)
        answers += [asyncio.ensure_future(post(client, body)) for _ in range(2)]
        await until(lambda: waiting_files(client) == 2)
        yield client
        held_decoding.go_on.set()
        assert [answer.status_code for answer in await asyncio.gather(*answers)] == [200] * 3


@pytest.mark.usefixtures("_slow")
@pytest.mark.parametrize("way", WAYS)
async def test_429_for_pictures_that_would_wait_too_long_for_a_thread_and_200_for_what_needs_none(held_decoding, way):
    array = io.BytesIO()
    np.save(array, np.zeros((32, 3, 32, 32), np.uint8))  # no small body
    async with busy_threads(held_decoding, WAYS[way]) as client:
        for body in WAYS.values():
            answer = await post(client, body)
            assert_problem(answer, 429, "queue-full")
            assert int(answer.headers["retry-after"]) == math.ceil(3e-4 * len(WAYS[way]))
        assert (await post(client)).status_code == 200
        assert (await post(client, array.getvalue(), {"content-type": "application/x-npy"})).status_code == 200
        assert client.app.state.service.queued_images() == 3
        assert (await metrics_of(client))['resnet_rejected_total{reason="queue-full"}'] == 2


@pytest.mark.usefixtures("_slow")
async def test_a_large_body_is_not_even_asked_for_while_no_thread_would_decode_it_in_time(held_decoding):
    async with busy_threads(held_decoding, FAST) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\n"
        writer.write(head + b"content-length: 1000000\r\nexpect: 100-continue\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        writer.close()


async def test_the_pictures_of_one_request_keep_another_one_waiting_for_one_of_them_only(held_decoding, monkeypatch):
    monkeypatch.setattr("app.decode_pool.TURN_S", 0.0)
    async with serving(decode_threads=1) as client:
        many = asyncio.ensure_future(client.post("/predict", files=[("file", PICTURE)] * 50))
        assert await asyncio.to_thread(held_decoding.begun.wait, 10)
        one = asyncio.ensure_future(post(client, FAST))
        await until(lambda: waiting_files(client) == 50)
        held_decoding.go_on.set()
        assert [(await answer).status_code for answer in (one, many)] == [200, 200]
    assert held_decoding.files.index(FAST) == 2


@pytest.mark.parametrize(("picture", "count"), [(FAST, 2), (PICTURE, 256)], ids=WAYS)
async def test_what_a_client_has_sent_that_leaves_is_not_decoded_and_takes_no_places(held_decoding, picture, count):
    request = httpx.Request("POST", "http://x", files=[("file", picture)] * count)
    content, kind = request.read(), request.headers["content-type"]
    engine = FakeEngine()
    async with serving(engine, decode_threads=1) as client:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        assert await asyncio.to_thread(held_decoding.begun.wait, 30)
        writer.close()
        gone = 'resnet_requests_total{route="/predict",status="499"}'
        while gone not in (metrics := await metrics_of(client)):
            pass
        assert metrics['resnet_images_total{outcome="client-gone"}'] == count
        service = client.app.state.service
        assert (service.queued_images(), service.body_budget.held_bytes, waiting_files(client)) == (0, 0, 0)
        held_decoding.go_on.set()
        assert (await post(client)).status_code == 200
    assert len(held_decoding.files) == 1
    assert engine.batches == [1]


async def test_422_for_a_request_whose_pictures_have_too_many_pixels_together():
    black = encode(noise(32, 32).resize((64, 64)).convert("1"))
    async with serving(max_pixels=64 * 64) as client:
        assert (await client.post("/predict", files=[("file", black)] * 16)).status_code == 200
        answer = await client.post("/predict", files=[("file", black)] * 17)
        assert_problem(answer, 422, "too-many-pixels")
        assert "together" in answer.json()["detail"]
        assert client.app.state.service.queued_images() == 0


@pytest.mark.parametrize("way", WAYS)
async def test_the_wait_for_a_thread_is_waiting_and_not_decoding(monkeypatch, way):
    later_s = 0.0
    monkeypatch.setattr("app.decode_pool.time", SimpleNamespace(monotonic=lambda: time.monotonic() + later_s))
    async with serving(decode_threads=1) as client:
        taken, go_on = threading.Event(), threading.Event()
        decoder = client.app.state.service.predictor.decoder
        ahead = decoder.run(lambda: taken.set() or go_on.wait(30), time.monotonic() + 600)
        assert await asyncio.to_thread(taken.wait, 10)
        asked = asyncio.ensure_future(post(client, WAYS[way]))
        await until(lambda: waiting_files(client) == 1)
        later_s = 5.0
        go_on.set()
        assert await ahead.future == [True]
        told, metrics = timing_ms(await asked), await metrics_of(client)
    assert told["queue"] >= 5000
    assert metrics["resnet_queue_seconds_sum"] >= 5
    assert metrics["resnet_decode_seconds_sum"] == pytest.approx(told["decode"] / 1000, abs=1e-5)
    assert told["decode"] < 5000
