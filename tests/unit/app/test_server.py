"""Closing the port, in this process: the one moment in a drain that no test of the real process can hold still."""

import asyncio
import errno
import os
import signal
import socket
from functools import partial
from types import SimpleNamespace

import pytest
import uvicorn
import uvloop

from app.engine_service import EngineService
from app.http.accept_loop import AcceptLoop
from app.http.byte_budget import ByteBudget
from app.http.connection_limits import ConnectionLimits
from app.http.connections import Connection
from app.server import LISTENERS, Server
from app.server_options import allow_connections, main_server_config, open_main_port
from app.settings import Settings
from tests.conftest import warnings_of
from tests.fakes import FakeEngine

on_both_loops = pytest.mark.parametrize(
    "new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"]
)

KEPT = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def restored_hangup():
    before = signal.getsignal(signal.SIGHUP)
    yield
    signal.signal(signal.SIGHUP, before)


async def hello(scope, _receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"hello"})


async def started(http="httptools"):
    """A server, the task that runs it, and its address."""
    config = uvicorn.Config(hello, port=0, http=http, ws="none", lifespan="off", log_config=None, access_log=False)
    server = Server(config, EngineService(Settings(), lambda _settings: FakeEngine()))
    running = asyncio.create_task(server.serve())
    while not server.started or len(server.servers) < LISTENERS:
        await asyncio.sleep(0)
    return server, running, server.servers[0].sockets[0].getsockname()


async def close_over_waiting_clients(count):
    """Connect and send while the event loop cannot accept, close the port at once, and return the answers."""
    server, running, address = await started()
    clients = [socket.create_connection(address) for _ in range(count)]
    for client in clients:
        client.sendall(REQUEST)
    await server.shutdown()
    server.should_exit = server.force_exit = True
    await running
    answers = []
    for client in clients:
        with client:
            answers.append(client.makefile("rb").read())
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return answers


@on_both_loops
def test_clients_that_the_loop_has_not_accepted_yet_are_answered(new_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        answers = runner.run(close_over_waiting_clients(20))
    assert [answer.endswith(b"hello") for answer in answers] == [True] * 20


async def close_over_a_handshake(monkeypatch):
    """Close the port on a client whose handshake ends after new ones are kept out; return what it is answered."""
    server, running, address = await started()
    clients = []

    def connect():
        if not clients:
            clients.append(socket.create_connection(address))
            clients[0].sendall(REQUEST)

    def drop(_listener):
        asyncio.get_running_loop().call_soon(connect)
        return True

    monkeypatch.setattr("app.http.ports.drop_new_connections", drop)
    await server.shutdown()
    server.should_exit = server.force_exit = True
    await running
    with clients[0] as client:
        return client.makefile("rb").read()


@on_both_loops
def test_a_client_that_was_half_in_as_nobody_was_let_in_any_more_is_answered(new_loop, monkeypatch):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(close_over_a_handshake(monkeypatch)).endswith(b"hello")


async def read_answer(client):
    """Read as much as the answer of `hello` and its end take, without holding up the event loop."""
    loop = asyncio.get_running_loop()
    answer = b""
    while not answer.endswith(b"hello") and (piece := await loop.sock_recv(client, 1000)):
        answer += piece
    return answer


async def shut_over_an_unread_request():
    """Close an idle connection in whose socket a request lies that the loop has not read; return what comes then."""
    limits = ConnectionLimits(60, 60, 10, lambda _reason: None, ByteBudget(1000))
    server, running, address = await started(partial(Connection, limits=limits))
    with socket.create_connection(address) as idle, socket.create_connection(address) as busy:
        for client in (idle, busy):
            client.setblocking(False)
            client.sendall(KEPT)
            assert (await read_answer(client)).endswith(b"hello")
        busy.sendall(KEPT)
        for connection in list(server.server_state.connections):
            connection.shutdown()
        answers = [await read_answer(busy), await read_answer(busy), await read_answer(idle)]
    server.should_exit = True
    await running
    return answers


@on_both_loops
def test_a_request_that_the_loop_has_not_read_yet_is_answered_before_its_connection_closes(new_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        answer, after, idle = runner.run(shut_over_an_unread_request())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert after == idle == b""


async def turns_to_accept(count):
    """Connect while the event loop cannot accept, and return in how many of its turns all are accepted."""
    server, running, address = await started()
    clients = [socket.create_connection(address) for _ in range(count)]
    turns = 0
    while len(server.server_state.connections) < count:
        await asyncio.sleep(0)
        turns += 1
    for client in clients:
        client.close()
    server.should_exit = True
    await running
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    return turns


@on_both_loops
def test_a_crowd_is_let_in_within_a_few_turns_of_the_loop(new_loop):
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(turns_to_accept(8 * LISTENERS)) <= 8 + 4


async def shut_over_a_newcomer(*, speaks):
    """End with a client that has connected and sent nothing yet; return what it is answered."""
    limits = ConnectionLimits(60, 60, 10, lambda _reason: None, ByteBudget(1000))
    server, running, address = await started(partial(Connection, limits=limits))
    with socket.create_connection(address) as client:
        client.setblocking(False)
        while not server.server_state.connections:
            await asyncio.sleep(0)
        ending = asyncio.create_task(server.shutdown())
        while server.servers[0].is_serving():
            await asyncio.sleep(0)
        await asyncio.sleep(0.05)
        if speaks:
            assert not ending.done()
            client.sendall(REQUEST)
        answer = await read_answer(client)
        await ending
    server.should_exit = server.force_exit = True
    await running
    return answer


@on_both_loops
@pytest.mark.parametrize("speaks", [True, False])
def test_who_has_just_connected_is_heard_but_not_waited_for_for_ever(new_loop, speaks, monkeypatch):
    monkeypatch.setattr("app.server.LINGER_S", 0.0)
    monkeypatch.setattr("app.server.NEWCOMERS_S", 30.0 if speaks else 0.0)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        answer = runner.run(shut_over_a_newcomer(speaks=speaks))
    assert answer.endswith(b"hello") is speaks


@pytest.mark.parametrize(("processes", "share"), [(1, 100), (3, 33)])
def test_http_processes_share_the_connections(processes, share):
    settings = Settings(max_connections=100, http_processes=processes)
    service = EngineService(settings, lambda _settings: FakeEngine())
    config = main_server_config(hello, service, allow_connections(settings))
    assert config.http.keywords["limits"].max_connections == share


@pytest.mark.parametrize(("processes", "told"), [(1, "only"), (3, "only in each of 3 HTTP processes")])
def test_where_files_are_few_it_is_told_for_how_many_connections_each_process_has_some(
    processes, told, monkeypatch, caplog
):
    monkeypatch.setattr("app.server_options.raise_file_limit", lambda _wanted, _others: 5)
    assert allow_connections(Settings(max_connections=100, http_processes=processes)) == 5
    assert caplog.messages == [f"the limit of open files allows for 5 connections {told}"]


class ScarcePort(socket.socket):
    """A port that has no file for the first connections."""

    refusals = 2

    def accept(self):
        if self.refusals:
            self.refusals -= 1
            raise OSError(errno.EMFILE, "Too many open files")
        return super().accept()


async def accept_with_few_files(rooms):
    """Return the connections that a TLS port takes, where at first there is no file, then no room."""
    server = Server(uvicorn.Config(hello, log_config=None), EngineService(Settings(), lambda _settings: FakeEngine()))
    taken = []
    server._connection_setup = SimpleNamespace(has_room=lambda: rooms.pop(0) if rooms else True, begin=taken.append)
    with socket.create_server(("127.0.0.1", 0)) as opened, ScarcePort(fileno=os.dup(opened.fileno())) as port:
        loop = AcceptLoop(port, partial(server._begin_handshake, port), at_once=LISTENERS)
        with socket.create_connection(opened.getsockname()), socket.create_connection(opened.getsockname()):
            loop.start()
            while len(taken) < 2:
                await asyncio.sleep(0)
        loop.stop()
        assert not asyncio.get_running_loop().remove_reader(port)
    for connection in taken:
        connection.close()
    return len(taken)


@on_both_loops
def test_clients_of_a_tls_port_wait_in_the_kernel_where_there_is_no_file_or_no_room(new_loop, caplog, monkeypatch):
    monkeypatch.setattr("app.http.accept_loop.REST_S", 0.0)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(accept_with_few_files([True, True, False, False])) == 2
    assert caplog.text.count("no connection can be accepted: Too many open files") == 2


async def stopped_while_it_rests():
    """Return whether a loop that was stopped in a rest listens again."""
    with socket.create_server(("127.0.0.1", 0)) as port, socket.create_connection(port.getsockname()):
        asked = []
        loop = AcceptLoop(port, lambda: bool(asked.append(1)), at_once=1)
        loop.start()
        while not asked:
            await asyncio.sleep(0)
        loop.stop()
        for _ in range(5):
            await asyncio.sleep(0)
        return asyncio.get_running_loop().remove_reader(port) or len(asked) > 1


@on_both_loops
def test_a_port_that_is_closed_while_it_rests_stays_closed(new_loop, monkeypatch):
    monkeypatch.setattr("app.http.accept_loop.REST_S", 0.0)
    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert not runner.run(stopped_while_it_rests())


@pytest.mark.parametrize(
    ("settings", "warned"),
    [
        ({"host": "0.0.0.0"}, True),
        ({"host": "0.0.0.0", "tls_cert": "c", "tls_key": "k"}, True),
        ({"host": "0.0.0.0", "api_key": "x"}, False),
        ({"host": "0.0.0.0", "api_keys_file": "keys"}, False),
        ({"host": "127.0.0.1"}, False),
    ],
)
def test_a_port_that_is_open_to_everybody_is_warned_of(settings, warned, caplog):
    open_main_port(Settings(port=0, **settings)).close()
    assert len(warnings_of(caplog)) == warned
