"""A request answered by the fast path and by the framework: the same answers to the same requests."""

import asyncio
import hashlib
import json
import re
import time
from datetime import UTC
from email.utils import parsedate_to_datetime

import httpx
import pytest

from app.batching.admission import Load
from app.http.connections import Connection
from tests.api.conftest import no_room, occupied, serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}

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
    async with httpx.AsyncClient(transport=httpx.ASGITransport(client.app), base_url="http://test") as framework:
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


async def answers_of(client, head, *pieces):
    """Send a header and, each after the service has seen what was before, pieces of a body; return all that comes."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(head)
    for piece in pieces:
        await client.get("/livez")  # a turn of the service's loop
        writer.write(piece)
    answers = await reader.read()
    writer.close()
    return answers


HEAD = b"POST /predict?top_k=1 HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: %d\r\n"
PICTURE = encode(noise())


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
        assert service.body_budget.held_bytes == service.loaded.batcher.queued_images == 0


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


async def test_who_is_turned_away_may_go_on_and_is_answered_in_order():
    async with no_room() as (client, _):
        probe = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
        refused = HEAD % len(PICTURE) + b"\r\n" + PICTURE
        last = refused.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        answers = await answers_of(client, refused * 1000 + probe + refused + probe + last)
        expected = [*[b"429"] * 1000, b"200", b"429", b"200", b"429"]
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == expected


@pytest.mark.parametrize("header_bytes", [1, 40])
async def test_a_body_in_pieces_is_turned_away_at_its_end(header_bytes):
    async with no_room() as (client, _):
        request = HEAD % len(PICTURE) + b"\r\n" + PICTURE
        probe = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        at = len(request) - 100
        pieces = request[header_bytes:at], request[at:] + probe
        answers = await answers_of(client, request[:header_bytes], *pieces)
        assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"429", b"200"]


async def test_if_there_is_room_by_the_end_of_a_body_it_is_taken():
    async with no_room() as (client, let_go):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(HEAD % len(PICTURE) + b"connection: close\r\n\r\n" + PICTURE[:10])
        await client.get("/livez")
        writer.write(PICTURE[10:20])
        await client.get("/livez")
        await let_go()
        writer.write(PICTURE[20:])
        assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


class Client:
    """One connection that is kept, and answers as they come; every request is one piece of data, as a client's are."""

    @classmethod
    async def connect(cls, service):
        self = cls()
        self.reader, self.writer = await asyncio.open_connection(service.base_url.host, service.base_url.port)
        return self

    async def ask(self, body, head=HEAD):
        self.writer.write(head % len(body) + b"\r\n" + body)
        return await self.answer()

    async def answer(self):
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = int(re.search(r"content-length: (\d+)", head)[1])
        return int(head.split()[1]), json.loads(await self.reader.readexactly(length))


@pytest.fixture
def parsed(monkeypatch):
    """The beginnings of a Client's requests that parsers are given."""
    pieces = []
    feed = Connection._feed

    def noted(connection, data):
        if data.startswith(HEAD[:19]):
            pieces.append(data)
        feed(connection, data)

    monkeypatch.setattr(Connection, "_feed", noted)
    return pieces


async def test_a_header_that_comes_again_is_not_parsed_again_and_means_the_same(parsed):
    async with serving() as service:
        client = await Client.connect(service)
        first = await client.ask(PICTURE)
        another = encode(noise(40, 30))
        assert len(another) != len(PICTURE)
        assert (await client.ask(another))[0] == 200
        assert (await client.ask(b"junk"))[0] == 422
        assert (await client.ask(b""))[0] == 400
        assert await client.ask(PICTURE) == first
        assert len(parsed) == 1
        assert (await client.ask(PICTURE, HEAD.replace(b"top_k=1", b"top_k=2")))[1]["predictions"][0]["probabilities"][
            1
        ]
        assert (await client.ask(b"x" * 70_000))[0] == 422  # large ones are the application's
        assert (await client.ask(PICTURE))[0] == 200
        assert len(parsed) > 3
        metrics = (await service.get("/metrics")).text
        assert 'resnet_requests_total{route="/predict",status="200"} 5.0' in metrics


async def test_a_cached_header_does_not_let_a_withdrawn_key_in(parsed, tmp_path):
    digest = hashlib.sha256(b"secret").hexdigest()
    file = tmp_path / "keys.txt"
    file.write_text(f"me:{digest}\n")
    async with serving(api_keys_file=file) as service:
        client = await Client.connect(service)
        head = HEAD + b"authorization: Bearer secret\r\n"
        assert [(await client.ask(PICTURE, head))[0] for _ in range(2)] == [200, 200]
        file.write_text(f"me:{digest[::-1]}\n")
        service.app.state.service.read_files_again()
        assert (await client.ask(PICTURE, head))[0] == 401
        assert len(parsed) == 1


async def test_what_follows_a_request_with_a_cached_header_that_waits_is_answered_behind_it(parsed):
    engine = FakeEngine()
    async with serving(engine) as service:
        client = await Client.connect(service)
        assert (await client.ask(PICTURE))[0] == 200
        async with occupied(engine, service):
            request = HEAD % len(PICTURE) + b"\r\n" + PICTURE
            client.writer.write(request)
            while not service.app.state.service.queued_images():
                await asyncio.sleep(0)
            assert len(parsed) == 1
            client.writer.write(HEAD % 4 + b"\r\njunk" + request)
            await service.get("/livez")
            engine.release()
            assert [(await client.answer())[0] for _ in range(3)] == [200, 422, 200]
            assert (await client.ask(PICTURE))[0] == 200


@pytest.mark.parametrize("cached", [False, True])
async def test_of_accepted_requests_in_a_row_all_are_answered_when_a_drain_begins(cached):
    """Only the last answer closes the connection, behind which nothing waits."""
    engine = FakeEngine()
    async with serving(engine) as service:
        client = await Client.connect(service)
        if cached:
            assert (await client.ask(PICTURE))[0] == 200
        async with occupied(engine, service):
            client.writer.write((HEAD % len(PICTURE) + b"\r\n" + PICTURE) * 3)
            while not service.app.state.service.queued_images():
                await asyncio.sleep(0)
            await service.get("/livez")  # all that was sent has been read
            service.app.state.service.lifecycle.drain()
            engine.release()
            assert [(await client.answer())[0] for _ in range(3)] == [200, 200, 200]
            assert await client.reader.read() == b""


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


async def test_a_client_that_leaves_while_its_request_with_a_cached_header_waits_is_counted_and_holds_nothing():
    engine = FakeEngine()
    async with serving(engine) as service:
        client = await Client.connect(service)
        assert (await client.ask(PICTURE))[0] == 200
        async with occupied(engine, service):
            client.writer.write(HEAD % len(PICTURE) + b"\r\n" + PICTURE)
            while not service.app.state.service.queued_images():
                await asyncio.sleep(0)
            client.writer.close()
            gone = 'resnet_requests_total{route="/predict",status="499"} 1.0'
            while gone not in (await service.get("/metrics")).text:
                pass
            assert service.app.state.service.queued_images() == 0
            engine.release()


async def test_requests_with_a_cached_header_are_turned_away_until_there_is_room(parsed):
    async with no_room() as (service, let_go):
        client = await Client.connect(service)
        assert [(await client.ask(PICTURE))[0] for _ in range(20)] == [429] * 20
        assert len(parsed) == 1
        await let_go()
        assert (await client.ask(PICTURE))[0] == 200
        metrics = (await service.get("/metrics")).text
        assert 'resnet_requests_total{route="/predict",status="429"} 20.0' in metrics
        assert 'resnet_rejected_total{reason="queue-full"} 20.0' in metrics


@pytest.mark.parametrize(("batch_s", "rest_s"), [(0.016, 0.002), (1.0, 0.005), (0.0, 0.0)])
async def test_the_loop_rests_after_a_turn_that_turned_somebody_away(monkeypatch, batch_s, rest_s):
    async with no_room() as (service, _):
        rests = []
        monkeypatch.setattr(Load, "batch_s", batch_s)
        monkeypatch.setattr("app.routes.fast_predict.AWAKE_S", 0.0)
        monkeypatch.setattr("app.routes.fast_predict.time.sleep", rests.append)
        clients = [await Client.connect(service) for _ in range(5)]
        assert [(await client.ask(PICTURE))[0] for client in clients] == [429] * 5
        assert rests == [rest_s] * 5  # also where the parser had to read the header
        rests.clear()
        assert [status for status, _ in await asyncio.gather(*(one.ask(PICTURE) for one in clients))] == [429] * 5
        assert 1 <= len(rests) <= 5
        assert set(rests) == {rest_s}
        metrics = (await service.get("/metrics")).text  # of several in a turn, each is counted
        assert 'resnet_requests_total{route="/predict",status="429"} 10.0' in metrics
        assert 'resnet_rejected_total{reason="queue-full"} 10.0' in metrics


async def test_it_does_not_rest_while_anything_else_may_need_it(monkeypatch):
    async with no_room() as (service, _):
        rests = []
        monkeypatch.setattr("app.routes.fast_predict.time.sleep", rests.append)
        monkeypatch.setattr(Load, "batch_s", 1.0)
        monkeypatch.setattr("app.routes.fast_predict.AWAKE_S", 1000.0)
        client = await Client.connect(service)
        assert (await client.ask(PICTURE))[0] == 429
        assert (await service.get("/livez")).status_code == 200
        assert (await client.ask(PICTURE))[0] == 429
        assert rests == []
        monkeypatch.setattr("app.routes.fast_predict.AWAKE_S", 0.0)
        assert (await service.get("/livez")).status_code == 200
        assert (await client.ask(PICTURE))[0] == 429
        assert rests == [0.005]


async def test_each_image_of_a_request_that_fails_is_counted():
    engine = FakeEngine()
    engine.errors = [ValueError()]
    async with serving(engine) as client:
        assert (await client.post("/predict", files=[("file", PICTURE)] * 3)).status_code == 500
        assert 'resnet_images_total{outcome="internal-error"} 3.0' in (await client.get("/metrics")).text
