"""A port that is about to close: who is there is served, nobody else comes in."""

import select
import socket
import sys

import pytest

from app import ports
from app.ports import turn_away

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def port(request):
    with socket.socket(request.param) as listening:
        listening.bind(("127.0.0.1" if request.param == socket.AF_INET else "::1", 0))
        listening.listen(8)
        listening.setblocking(False)
        yield listening


def comer(port):
    """A client that asks to be let in; on one machine that is answered at once."""
    client = socket.socket(port.family)
    client.setblocking(False)
    client.connect_ex(port.getsockname())
    return client


def is_in(client):
    return bool(select.select([], [client], [], 0.1)[1])


def test_who_is_there_is_served_and_nobody_else_comes_in(port):
    with comer(port) as early:
        assert is_in(early)
        turn_away(port)
        with comer(port) as late:
            assert not is_in(late)
            accepted = port.accept()[0]
            with pytest.raises(BlockingIOError):
                port.accept()
            early.sendall(b"request")
            with accepted:
                accepted.setblocking(True)
                assert accepted.recv(16) == b"request"
                accepted.sendall(b"answer")
                early.setblocking(True)
                assert early.recv(16) == b"answer"


def test_where_it_is_forbidden_the_port_is_as_it_was(port, monkeypatch):
    monkeypatch.setattr(ports, "SO_ATTACH_FILTER", 9999)
    turn_away(port)
    with comer(port) as client:
        assert is_in(client)
