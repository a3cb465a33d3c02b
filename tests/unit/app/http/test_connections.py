"""A connection's times, answers and end, and how many there may be. These tests fail if uvicorn's hooks change."""

import asyncio
import gc
import json
import resource
import weakref

import pytest

from app.http import connection_limits
from app.http.answering import CONNECTION
from app.http.connection_limits import OTHER_FILES, raise_file_limit
from tests.connections import HALF, REQUEST, Port, ended, responding

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_linger")]


async def test_a_silent_client_is_closed_without_an_answer():
    port = Port(header_timeout_s=0.01)
    _, transport = port.connect()
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert transport.sent == b""
    assert port.refused == []


async def test_half_a_header_gets_408():
    port = Port(header_timeout_s=0.01)
    protocol, transport = port.connect()
    protocol.data_received(HALF)
    await asyncio.wait_for(transport.closed.wait(), 10)
    head, _, body = transport.sent.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in head
    problem = json.loads(body)
    assert problem["type"] == "urn:resnet:problem:header-too-slow"
    assert problem["request_id"].encode() in head
    assert port.refused == ["header-too-slow"]


async def test_what_a_refused_client_still_sends_is_thrown_away_for_a_while():
    protocol, transport = Port().connect()
    protocol.data_received(HALF)
    protocol._close_late()
    answer = transport.sent
    assert transport.half_closed
    assert not transport.closed.is_set()
    protocol.data_received(b"st: x\r\n\r\n" + REQUEST)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert transport.sent == answer
    assert not transport.aborted


async def test_a_byte_now_and_then_does_not_prolong_the_headers_time():
    protocol, _ = Port().connect()
    timer = protocol._header_timer
    for byte in HALF:
        protocol.data_received(bytes([byte]))
        assert protocol._header_timer is timer
        assert not timer.cancelled()


async def test_a_header_that_waited_unread_until_its_time_was_over_is_still_taken():
    protocol, transport = Port().connect()
    protocol._header_late()  # the loop was stuck, and its timers come before its sockets
    timer = protocol._header_timer
    protocol.data_received(REQUEST)
    assert timer.cancelled()
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


async def test_a_whole_header_ends_the_headers_time():
    async def wait(_scope, _receive, _send):
        await asyncio.Event().wait()

    protocol, _ = Port(wait).connect()
    timer = protocol._header_timer
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n12")
    assert timer.cancelled()
    assert protocol._header_timer is None
    for task in protocol.tasks:
        task.cancel()


async def test_between_requests_the_keep_alive_timer_runs_and_from_the_next_byte_on_the_headers():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")
    assert protocol._header_timer is None
    assert protocol.timeout_keep_alive_task is not None
    protocol.data_received(b"G")
    assert protocol.timeout_keep_alive_task is None
    assert protocol._header_timer is not None


async def test_half_a_header_behind_a_whole_request_has_the_headers_time_as_well():
    protocol, _ = Port().connect()
    protocol.data_received(REQUEST + HALF)
    assert protocol._header_timer is None
    await ended(protocol)
    assert protocol.timeout_keep_alive_task is None
    assert protocol._header_timer is not None


@pytest.mark.parametrize("headers", [[], [(b"connection", b"close")]], ids=["HTTP/1.0", "the service's wish"])
async def test_a_whole_answer_is_one_write_and_closes_where_it_should(headers, monkeypatch):
    monkeypatch.setattr("app.http.problems.time.time", lambda: 784111777.9)

    async def respond(scope, receive, _send):
        await receive()
        await scope["extensions"][CONNECTION].respond(200, [(b"content-length", b"2"), *headers], b"ok")

    protocol, transport = Port(respond).connect()
    protocol.data_received(REQUEST if headers else REQUEST.replace(b"1.1", b"1.0"))
    await ended(protocol)
    assert transport.sent == (
        b"HTTP/1.1 200 OK\r\ndate: Sun, 06 Nov 1994 08:49:37 GMT\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    )
    assert transport.closed.is_set()


@pytest.mark.parametrize("behind", [b"", REQUEST], ids=["alone", "with another behind it"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_request_is_told_when_its_client_leaves(when, behind):
    told, asks = asyncio.Event(), asyncio.Event()

    async def wait(scope, receive, _send):
        await receive()
        if when == "before":
            protocol.connection_lost(None)
        scope["extensions"][CONNECTION].when_gone(told.set)
        asks.set()
        await told.wait()
        assert (await receive())["type"] == "http.disconnect"

    protocol, _ = Port(wait).connect()
    protocol.data_received(REQUEST + behind)
    await asks.wait()
    if when == "meanwhile":
        assert not told.is_set()
        protocol.connection_lost(None)
    await ended(protocol)


async def test_where_all_are_busy_a_connection_too_many_is_closed_and_one_that_ends_makes_room():
    port = Port(max_connections=2)
    (first, one), (second, another) = port.connect(), port.connect()
    for protocol in (first, second):
        protocol.data_received(HALF)
    third, refused = port.connect()
    assert refused.aborted
    assert not any(transport.is_closing() for transport in (one, another))
    assert port.refused == ["too-many-connections"]
    third.connection_lost(None)
    first.connection_lost(None)
    _, fourth = port.connect()
    assert not fourth.is_closing()


async def test_the_connection_that_has_been_idle_for_longest_makes_room_for_another_one(monkeypatch):
    monkeypatch.setattr(connection_limits, "LONG_IDLE_S", 0.0)
    port = Port(max_connections=3)
    connected = [port.connect() for _ in range(3)]
    for protocol, _ in connected[1:]:  # the first one's client has never sent anything
        protocol.data_received(REQUEST)
        await ended(protocol)
    (silent, one), (answered, another), (_, latest) = connected
    _, new = port.connect()
    assert one.aborted
    assert not any(transport.is_closing() for transport in (another, latest, new))
    silent.connection_lost(None)
    _, newer = port.connect()
    assert another.aborted
    assert not any(transport.is_closing() for transport in (latest, new, newer))
    answered.connection_lost(None)
    assert port.refused == ["too-many-connections"] * 2


BUSY = {
    "half a header": lambda protocol, _transport: protocol.data_received(HALF),
    "a response that is not read": lambda _protocol, transport: setattr(transport, "unread", 5),
    "a request that lies in the socket": lambda protocol, _transport: setattr(protocol, "has_unread", lambda: True),
    "its end": lambda protocol, _transport: protocol._linger(60.0),
}


@pytest.mark.parametrize("name", BUSY)
async def test_a_connection_with_something_under_way_makes_no_room(name, monkeypatch):
    monkeypatch.setattr(connection_limits, "LONG_IDLE_S", 0.0)
    port = Port(max_connections=1)
    busy, transport = port.connect()
    BUSY[name](busy, transport)
    _, refused = port.connect()
    assert refused.aborted
    assert not transport.aborted


async def test_a_connection_that_has_been_idle_for_a_moment_makes_no_room(monkeypatch):
    monkeypatch.setattr(connection_limits, "LONG_IDLE_S", 3600.0)
    port = Port(max_connections=1)
    _, transport = port.connect()
    _, refused = port.connect()
    assert refused.aborted
    assert not transport.is_closing()


async def test_a_connection_that_is_answered_makes_no_room(monkeypatch):
    monkeypatch.setattr(connection_limits, "LONG_IDLE_S", 0.0)
    asked, go = asyncio.Event(), asyncio.Event()

    async def wait(scope, receive, send):
        asked.set()
        await go.wait()
        await responding()(scope, receive, send)

    port = Port(wait, max_connections=1)
    busy, transport = port.connect()
    busy.data_received(REQUEST)
    await asked.wait()
    _, refused = port.connect()
    assert refused.aborted
    go.set()
    await ended(busy)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


async def test_the_first_response_on_an_old_connection_says_that_it_is_the_last_one():
    protocol, transport = Port(responding(), max_age_s=3600.0).connect()
    assert 0.89 * 3600 < protocol._age_timer.when() - protocol.loop.time() < 1.11 * 3600
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert b"connection: close" not in transport.sent
    protocol._grow_old()
    assert not transport.is_closing()
    transport.sent = b""
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert b"\r\nconnection: close\r\n" in transport.sent
    assert transport.is_closing()


async def test_a_connection_has_no_age_unless_it_is_asked_for():
    protocol, _ = Port().connect()
    assert protocol._age_timer is None


async def test_the_end_of_a_connection_ends_its_timers():
    protocol, _ = Port(max_age_s=3600.0).connect()
    protocol.pause_writing()
    timers = [protocol._header_timer, protocol._age_timer, protocol._ending._abort_timer]
    protocol.connection_lost(ConnectionResetError())
    assert all(timer.cancelled() for timer in timers)


async def test_a_connection_that_is_reset_while_idle_is_forgotten_at_once():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST)
    await ended(protocol)
    timer = protocol.timeout_keep_alive_task
    assert timer is not None
    protocol.connection_lost(ConnectionResetError())
    assert timer.cancelled()
    assert protocol.timeout_keep_alive_task is None
    forgotten = weakref.ref(protocol)
    del protocol, transport
    await asyncio.sleep(0)
    gc.collect()
    assert forgotten() is None


@pytest.mark.parametrize(
    ("soft", "hard", "wanted", "allowed", "raised"),
    [
        (1024, 4096, 500, 500, None),
        (1024, 1024, 4096, 1024 - OTHER_FILES, None),
        (1024, 100_000, 4096, 4096, (4096 + OTHER_FILES, 100_000)),
        (1024, 2048, 4096, 2048 - OTHER_FILES, (2048, 2048)),
        (1024, resource.RLIM_INFINITY, 4096, 4096, (4096 + OTHER_FILES, resource.RLIM_INFINITY)),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 4096, 4096, None),
    ],
)
def test_connections_leave_files_for_the_rest(monkeypatch, soft, hard, wanted, allowed, raised):
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _which: now[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: now.append(limits))
    assert raise_file_limit(wanted) == allowed
    assert (now[-1] if len(now) > 1 else None) in (raised, (soft, hard))
