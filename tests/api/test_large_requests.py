"""Requests too large for the event loop: they are the framework's, and nothing else waits for them."""

import asyncio
import threading

import pytest

from app.http.bodies import SMALL_BODY_BYTES, split_images
from app.routes import predict
from tests.api.conftest import no_room, serving
from tests.conftest import encode, noise

pytestmark = pytest.mark.anyio

SMALL, LARGE = encode(noise()), encode(noise(256, 256))
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: %d\r\n"


@pytest.mark.parametrize("picture", [SMALL, LARGE], ids=["small", "large"])
async def test_only_a_small_body_is_taken_apart_on_the_event_loop(picture, monkeypatch):
    threads = []

    def noted(*given):
        threads.append(threading.current_thread())
        return split_images(*given)

    async def in_chunks():  # which even a small body goes to the framework for
        yield picture

    monkeypatch.setattr(predict, "split_images", noted)
    async with serving() as client:
        answer = await client.post("/predict", content=in_chunks(), headers={"content-type": "image/png"})
    assert answer.status_code == 200
    on_the_loop = [thread is threading.current_thread() for thread in threads]
    assert on_the_loop == [len(picture) <= SMALL_BODY_BYTES]


@pytest.mark.parametrize("picture", [SMALL, LARGE], ids=["small", "large"])
async def test_the_time_of_decoding_is_measured_on_either_way(picture):
    async with serving() as client:
        answer = await client.post("/predict", content=picture, headers={"content-type": "image/png"})
        lines = (await client.get("/metrics")).text.splitlines()
    assert answer.status_code == 200
    assert "resnet_decode_seconds_count 1.0" in lines
    assert "resnet_queue_seconds_count 1.0" in lines


async def test_a_large_body_is_not_even_asked_for_while_there_is_no_room():
    async with no_room() as (client, _):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(HEAD % 1_000_000 + b"expect: 100-continue\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        writer.close()
