"""Requests whose header is known from the one before on their connection."""

import asyncio
import hashlib

import pytest

from app.http.connections import Connection
from tests.api.asking import HEAD, PICTURE, Client
from tests.api.conftest import no_room, occupied, serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio


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


async def test_a_client_that_leaves_before_the_body_behind_a_cached_header_is_counted(monkeypatch, parsed):
    monkeypatch.setattr("app.http.fast_connections.BODY_SOON_S", 3600)
    async with serving() as service:
        client = await Client.connect(service)
        assert (await client.ask(PICTURE))[0] == 200
        client.writer.write(HEAD % len(PICTURE) + b"\r\n")
        client.writer.close()
        gone = 'resnet_requests_total{route="/predict",status="499"} 1.0'
        while gone not in (await service.get("/metrics")).text:
            pass
        assert len(parsed) == 1
        assert service.app.state.service.queued_images() == 0


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
