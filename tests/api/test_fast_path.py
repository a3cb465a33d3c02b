"""A request answered by the fast path and by the framework: the same answers to the same requests."""

import asyncio
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import pytest

from tests.api.asking import HEAD, PICTURE, PNG, Client, answers_of
from tests.api.conftest import no_room, occupied, serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine
from tests.other_server import under_another_server

pytestmark = pytest.mark.anyio

REQUESTS = {
    "a picture": ("", PNG),
    "one class": ("?top_k=1", PNG),
    "zeros in front": ("?top_k=003", PNG),
    "a sign": ("?top_k=%2B3", PNG),
    "an underscore": ("?top_k=1_0", PNG),
    "a whole fraction": ("?top_k=3.0", PNG),
    "a space": ("?top_k=%203", PNG),
    "digits of another script": ("?top_k=%D9%A3", PNG),
    "a deadline with a sign": ("", PNG | {"x-timeout-ms": "+5000"}),
    "the last of two": ("?top_k=x&top_k=2", PNG),
    "a deadline": ("", PNG | {"x-timeout-ms": "5000"}),
    "no integer": ("?top_k=some", PNG),
    "nothing": ("?top_k=", PNG),
    "a fraction": ("?top_k=1.5", PNG),
    "too small": ("?top_k=0", PNG),
    "too large": ("?top_k=11", PNG),
    "two things wrong": ("?top_k=-1", PNG | {"x-timeout-ms": "soon"}),
    "another type": ("", {"content-type": "text/plain"}),
}
NO_INTEGERS = (
    "a sign",
    "an underscore",
    "a whole fraction",
    "a space",
    "digits of another script",
    "a deadline with a sign",
)
LEFT_OUT = {"x-request-id", "server-timing", "date"}  # the date is of whoever sends
KEYS = {"no key": {}, "a wrong key": {"authorization": "Bearer wrong"}, "the key": {"authorization": "Bearer secret"}}


async def both_ways(client, query, headers, picture=None):
    """Ask once as clients do, and once the framework itself, without a connection."""
    body = encode(picture or noise())
    fast = await client.post("/predict" + query, content=body, headers=headers)
    assert parsedate_to_datetime(fast.headers["date"]).tzinfo is UTC
    transport = httpx.ASGITransport(under_another_server(client.app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as framework:
        return fast, await framework.post("/predict" + query, content=body, headers=headers)


def content(answer: httpx.Response):
    body = answer.json()
    if answer.is_error:
        assert body.pop("request_id") == answer.headers["x-request-id"]
    else:
        assert "inference;dur=" in answer.headers["server-timing"]
    headers = {name: value for name, value in answer.headers.items() if name not in LEFT_OUT}
    return answer.status_code, headers, body


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_give_the_same_answer(name):
    async with serving() as client:
        fast, framework = await both_ways(client, *REQUESTS[name])
        assert content(fast) == content(framework)
        assert name not in NO_INTEGERS or (fast.status_code, fast.json()["type"]) == (
            422,
            "urn:resnet:problem:bad-parameter",
        )
        metrics = (await client.get("/metrics")).text
    assert f'resnet_requests_total{{route="/predict",status="{fast.status_code}"}} 2.0' in metrics


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("query", ["", "?top_k=0"])
async def test_both_ways_ask_for_the_key_first(name, query):
    async with serving(api_key="secret") as client:
        fast, framework = await both_ways(client, query, PNG | KEYS[name])
        assert content(fast) == content(framework)


async def test_a_body_may_come_in_pieces_and_behind_its_header():
    async with serving() as client:
        head = HEAD % len(PICTURE) + b"connection: close\r\n\r\n"
        assert (await answers_of(client, head, PICTURE[:7], PICTURE[7:])).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_a_client_that_waits_for_leave_to_send_is_given_it():
    async with serving() as client:
        head = HEAD % len(PICTURE) + b"expect: 100-continue\r\nconnection: close\r\n\r\n"
        answers = await answers_of(client, head, PICTURE)
        assert answers.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n")


async def test_requests_behind_one_another_are_answered_in_order():
    async with serving() as client:
        probe = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
        good, bad = HEAD % len(PICTURE) + b"\r\n" + PICTURE, HEAD % 4 + b"\r\njunk"
        last = bad.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        answers = await answers_of(client, good + bad + probe + good + last)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"422", b"200", b"200", b"422"]


async def test_thousands_of_requests_behind_one_that_waits_are_answered():
    async with serving() as client:
        bad = HEAD % 1 + b"\r\nx"
        last = bad.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        answers = await answers_of(client, HEAD % len(PICTURE) + b"\r\n" + PICTURE + bad * 2000 + last)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", *[b"422"] * 2001]


async def test_a_client_that_leaves_within_its_body_is_counted_and_holds_nothing():
    async with serving(max_buffered_bytes=100_000, max_body_bytes=100_000) as client:
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(HEAD % 4 + b"\r\nju")
        await client.get("/livez")
        writer.close()
        gone = 'resnet_requests_total{route="/predict",status="499"} 1.0'
        while gone not in (await client.get("/metrics")).text:
            pass
        service = client.app.state.service
        assert service.body_budget.held_bytes == service.predictor.batcher.queued_images == 0


async def test_a_picture_that_threads_decode_is_answered_like_a_tiny_one():
    async with serving() as client:
        fast, framework = await both_ways(client, "", PNG, noise(100, 100))
        assert content(fast) == content(framework)


async def test_other_methods_and_paths_are_the_frameworks():
    async with serving() as client:
        assert (await client.get("/predict")).status_code == 405
        assert (await client.post("/predictions")).status_code == 404


async def test_both_ways_turn_away_alike():
    async with no_room() as (client, _):
        fast, framework = await both_ways(client, "?top_k=1", PNG)
        assert fast.status_code == 429
        assert content(fast) == content(framework)
        metrics = (await client.get("/metrics")).text
        assert 'resnet_requests_total{route="/predict",status="429"} 2.0' in metrics
        assert 'resnet_rejected_total{reason="queue-full"} 2.0' in metrics
        named = await client.post("/predict", content=PICTURE, headers=PNG | {"x-request-id": "mine"})
        assert (named.json()["request_id"], named.headers["x-request-id"]) == ("mine", "mine")
        trace = "4bf92f3577b34da6a3ce929d0e0e4736"
        for method, path in (("POST", "/predict"), ("GET", "/livez")):  # refused directly, and by the framework
            parent = {"traceparent": f"00-{trace}-00f067aa0ba902b7-01"}
            traced = await client.request(method, path, content=PICTURE, headers=PNG | parent)
            assert traced.headers["x-request-id"] == trace


async def test_the_time_of_a_request_is_its_own_where_another_one_waits_behind_it():
    engine = FakeEngine()
    async with serving(engine) as service:
        client = await Client.connect(service)
        async with occupied(engine, service):
            client.writer.write((HEAD % len(PICTURE) + b"\r\n" + PICTURE) * 2)
            while not service.app.state.service.queued_images():
                await asyncio.sleep(0)
            begun = time.monotonic()
            await service.get("/livez")
            waited = time.monotonic() - begun
            engine.release()
            for _ in range(2):
                await client.answer()
        metrics = (await service.get("/metrics")).text
        total = float(re.search(r'resnet_request_seconds_sum{route="/predict"} (\S+)', metrics)[1])
        assert total >= 2 * waited  # of the one that occupied the engine, and of the first behind it


async def test_each_image_of_a_request_that_fails_is_counted():
    engine = FakeEngine()
    engine.errors = [ValueError()]
    async with serving(engine) as client:
        assert (await client.post("/predict", files=[("file", PICTURE)] * 3)).status_code == 500
        assert 'resnet_images_total{outcome="internal-error"} 3.0' in (await client.get("/metrics")).text
