"""A port that opens, or says in one line why it cannot; and one that is about to close: nobody else comes in."""

import asyncio
import select
import socket
import sys

import pytest

from app.http import ports
from app.http.ports import drop_new_connections, is_loopback, let_last_ones_in, open_port
from app.settings import SettingsError

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux can")


def has_ipv6_loopback():
    """Whether anything can listen at ::1, as nothing can in many containers."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6 = pytest.mark.skipif(not has_ipv6_loopback(), reason="this host has no IPv6 loopback")


@pytest.fixture
def no_name_server(monkeypatch):
    """Names that end in .invalid have no address, as everywhere, but nobody outside this host is asked."""
    getaddrinfo = socket.getaddrinfo

    def resolve(host, *given, **more):
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return getaddrinfo(host, *given, **more)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)


def test_a_port_that_is_taken_is_one_line():
    with open_port("127.0.0.1", 0, 8) as first:
        number = first.getsockname()[1]
        with pytest.raises(SettingsError) as refused:
            open_port("127.0.0.1", number, 8)
    assert str(refused.value) == f"port {number} at 127.0.0.1: Address already in use"


def test_a_name_that_does_not_resolve_is_said_to_be_one(no_name_server):
    with pytest.raises(SettingsError) as refused:
        open_port("no.such.host.invalid", 0, 8)
    assert str(refused.value) == "host no.such.host.invalid: Name or service not known"


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "no..such.host", "a" * 64])
def test_so_is_an_address_that_is_not_this_hosts(host, no_name_server):
    with pytest.raises(SettingsError, match=host) as refused:
        open_port(host, 0, 8)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        pytest.param("::", "127.0.0.1", marks=IPV6),
        pytest.param("::", "::1", marks=IPV6),
        pytest.param("::1", "::1", marks=IPV6),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
def test_it_listens_at_every_address_where_it_should(host, asked, caplog):
    caplog.set_level("INFO")
    with open_port(host, 0, 8, "https") as opened:
        number = opened.getsockname()[1]
        socket.create_connection((asked, number), timeout=10).close()
    shown = f"[{host}]" if ":" in host else host
    assert f"listening on https://{shown}:{number}" in caplog.text


@pytest.mark.parametrize(
    ("host", "alone"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", True),
        ("localhost", True),
        pytest.param("::1", True, marks=IPV6),
        ("0.0.0.0", False),
        pytest.param("::", False, marks=IPV6),
    ],
)
def test_a_port_that_other_hosts_may_reach_is_known(host, alone):
    with open_port(host, 0, 8) as opened:
        assert is_loopback(opened) is alone


@pytest.fixture(params=[pytest.param(socket.AF_INET, id="IPv4"), pytest.param(socket.AF_INET6, id="IPv6", marks=IPV6)])
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


@linux
def test_who_is_there_is_served_and_nobody_else_comes_in(port):
    with comer(port) as early:
        assert is_in(early)
        assert drop_new_connections(port)
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


@linux
def test_where_it_is_forbidden_the_port_is_as_it_was(port, monkeypatch):
    monkeypatch.setattr(ports, "SO_ATTACH_FILTER", 9999)
    assert not drop_new_connections(port)
    with comer(port) as client:
        assert is_in(client)


@pytest.mark.anyio
@pytest.mark.parametrize("kept_out", [True, False])
async def test_where_nobody_can_be_kept_out_nobody_is_waited_for(kept_out, monkeypatch):
    """There the port would only stay open for longer."""
    monkeypatch.setattr(ports, "drop_new_connections", lambda _listener: kept_out)
    closing = asyncio.ensure_future(let_last_ones_in([None, None]))
    await asyncio.sleep(0)
    assert closing.done() is not kept_out
    await closing
