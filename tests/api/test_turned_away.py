"""Small requests while there is no room: refused at their end, in order, and so that the engine gets the time."""

import asyncio
import re

import pytest

from app.batching.admission import Load
from app.routes.overload import OverloadRefusals
from tests.api.asking import HEAD, PICTURE, Client, answers_of
from tests.api.conftest import no_room

pytestmark = pytest.mark.anyio


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


@pytest.fixture
def rests(monkeypatch):
    """How long the event loop would have rested, each time, beside an engine whose batches take a second."""
    rests = []
    monkeypatch.setattr(Load, "batch_s", 1.0)
    monkeypatch.setattr("app.routes.overload.time.sleep", rests.append)
    return rests


@pytest.mark.parametrize(("batch_s", "rest_s"), [(0.016, 0.002), (1.0, 0.005), (0.0, 0.0)])
async def test_the_loop_rests_after_a_turn_that_turned_somebody_away(monkeypatch, rests, batch_s, rest_s):
    async with no_room() as (service, _):
        monkeypatch.setattr(Load, "batch_s", batch_s)
        monkeypatch.setattr("app.routes.overload.AWAKE_S", 0.0)
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


async def test_it_does_not_rest_while_anything_else_may_need_it(monkeypatch, rests):
    async with no_room() as (service, _):
        monkeypatch.setattr("app.routes.overload.AWAKE_S", 1000.0)
        client = await Client.connect(service)
        assert (await client.ask(PICTURE))[0] == 429
        assert (await service.get("/livez")).status_code == 200
        assert (await client.ask(PICTURE))[0] == 429
        assert rests == []
        monkeypatch.setattr("app.routes.overload.AWAKE_S", 0.0)
        assert (await service.get("/livez")).status_code == 200
        assert (await client.ask(PICTURE))[0] == 429
        assert rests == [0.005]


async def test_it_does_not_rest_between_accepting_a_connection_and_hearing_of_it(monkeypatch, rests):
    """uvloop tells of a connection a turn after it was accepted: what was refused before that comes first."""
    async with no_room() as (service, _):
        monkeypatch.setattr("app.routes.overload.AWAKE_S", 0.0)
        client = await Client.connect(service)
        monkeypatch.setattr("app.routes.overload.AWAKE_S", 1000.0)
        end_turn = OverloadRefusals._end_turn

        def end_turn_then_connect(refusals):
            end_turn(refusals)
            refusals.stay_awake()

        monkeypatch.setattr(OverloadRefusals, "_end_turn", end_turn_then_connect)
        assert (await client.ask(PICTURE))[0] == 429
        for _ in range(5):
            await asyncio.sleep(0)
        assert rests == []
