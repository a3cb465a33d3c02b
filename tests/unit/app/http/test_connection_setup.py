"""Handshakes under way are few: a crowd that says nothing ends its own, and an honest client comes through."""

import asyncio
import socket
import ssl

import pytest

from app.http import connection_setup
from app.http.connection_setup import ConnectionSetup
from tests.conftest import ROOT

pytestmark = pytest.mark.anyio

TLS = ROOT / "tests" / "tls"
CERT, KEY = TLS / "localhost.crt", TLS / "localhost.key"


@pytest.fixture
def context():
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERT, KEY)
    return context


class Noting(asyncio.Protocol):
    def __init__(self, made):
        self._made = made

    def connection_made(self, transport):
        self._made.append(transport)


@pytest.fixture
def pair():
    """Make connections: (what was accepted, the client's end); all are closed at the end."""
    kept = []

    def make():
        kept.extend(two := socket.socketpair())
        return two

    yield make
    for one in kept:
        one.close()


async def ended(client):
    """Wait until the other end has closed."""
    client.setblocking(False)
    try:
        return await asyncio.get_running_loop().sock_recv(client, 1) == b""
    except ConnectionResetError:
        return True


async def test_without_tls_a_connection_is_with_its_protocol_at_once(pair):
    made = []
    several = ConnectionSetup(lambda: Noting(made), None, 60.0, 60.0)
    accepted, _client = pair()
    several.begin(accepted)
    assert len(several) == 1
    await several.finish(10)
    assert (len(several), len(made)) == (0, 1)
    made[0].abort()


async def test_there_is_no_room_while_all_are_young_and_the_oldest_goes_when_it_is_not(pair, context, monkeypatch):
    monkeypatch.setattr(connection_setup, "MAX_HANDSHAKES", 2)
    monkeypatch.setattr(connection_setup, "PATIENCE_S", 3600)
    several = ConnectionSetup(lambda: Noting([]), context, 60.0, 60.0)
    clients = []
    for _ in range(2):
        assert several.has_room()
        accepted, client = pair()
        several.begin(accepted)
        clients.append(client)
    await asyncio.sleep(0)
    assert not several.has_room()
    monkeypatch.setattr(connection_setup, "PATIENCE_S", 0)
    assert several.has_room()
    assert len(several) == 2  # nobody goes before somebody comes
    accepted, newcomer = pair()
    several.begin(accepted)
    assert await asyncio.wait_for(ended(clients[0]), 10)
    assert len(several) == 2
    for left in [*several._begun]:
        left.cancel()
    for client in (clients[1], newcomer):
        assert await asyncio.wait_for(ended(client), 10)
    assert len(several) == 0


async def test_a_handshake_has_its_time(pair, context):
    made = []
    several = ConnectionSetup(lambda: Noting(made), context, 0.01, 60.0)
    accepted, client = pair()
    several.begin(accepted)
    await asyncio.wait_for(several.finish(60), 10)
    assert await asyncio.wait_for(ended(client), 10)
    assert (len(several), made) == (0, [])
