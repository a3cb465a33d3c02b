"""A connection over a transport that only notes what is done to it. These tests fail if uvicorn's hooks change."""

import asyncio
import json
import resource
from functools import partial

import pytest
import uvicorn
from uvicorn.server import ServerState

from app import connections
from app.connections import (
    MAX_HEADER_BYTES,
    OTHER_FILES,
    WHEN_GONE,
    WHOLE,
    Connection,
    ConnectionLimits,
    connections_within_files,
)

pytestmark = pytest.mark.anyio

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nho"


@pytest.fixture(autouse=True)
def short_linger(monkeypatch):
    monkeypatch.setattr(connections, "LINGER_S", 0.01)


class Transport:
    def __init__(self):
        self.sent = b""
        self.aborted = False
        self.half_closed = False
        self.closed = asyncio.Event()

    def get_extra_info(self, _name, default=None):
        return default

    def is_closing(self):
        return self.closed.is_set()

    def write(self, data):
        self.sent += data

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.half_closed = True

    def close(self):
        self.closed.set()

    def abort(self):
        self.aborted = True
        self.closed.set()

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def answer(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


class Port:
    """What uvicorn has for one port."""

    def __init__(self, app=answer, header_timeout_s=60.0, unread_timeout_s=60.0, max_connections=10):
        self.refused = []
        limits = ConnectionLimits(header_timeout_s, unread_timeout_s, max_connections, self.refused.append)
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits=limits),
            ws="none",
            log_config=None,
        )
        config.load()
        self.make = partial(config.http_protocol_class, config, ServerState(), {})

    def connect(self):
        protocol, transport = self.make(), Transport()
        protocol.connection_made(transport)
        return protocol, transport


async def ended(protocol):
    await asyncio.gather(*protocol.tasks)


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


async def test_a_second_request_behind_the_first_is_answered():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST + REQUEST)
    while transport.sent.count(b"HTTP/1.1 200 ") < 2:
        await asyncio.sleep(0)
    assert protocol._header_timer is None


NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "an endless header": b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "a coding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    "a target that is none": b"GET :x HTTP/1.1\r\nhost: x\r\n\r\n",
    "an endless target, and no HTTP then": b"GET /" + b"x" * 70_000 + b" HTTP/9\r\n",
    "many upgrades": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 2000,
}


@pytest.mark.parametrize("junk", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_gets_400(junk):
    port = Port()
    protocol, transport = port.connect()
    protocol.data_received(junk)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert b"HTTP/1.1 400 " in transport.sent
    assert b"urn:resnet:problem:malformed-request" in transport.sent
    assert protocol._header_timer is None
    assert port.refused == ["malformed-request"]


async def test_empty_lines_before_a_request_are_skipped_and_do_not_prolong_the_headers_time():
    protocol, transport = Port().connect()
    timer = protocol._header_timer
    protocol.data_received(b"\r\n\r\n")
    assert protocol._header_timer is timer
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


async def echo(_scope, receive, send):
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


UPGRADES = {
    "length": b"content-length: 5\r\n\r\nhello",
    "chunks": b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("piece_bytes", [1, 60, 1000])
@pytest.mark.parametrize("body", UPGRADES.values(), ids=UPGRADES)
async def test_a_body_behind_an_offer_of_another_protocol_is_read(body, piece_bytes):
    protocol, transport = Port(echo).connect()
    request = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\n" + body
    for _ in range(2):
        transport.sent = b""
        for start in range(0, len(request), piece_bytes):
            protocol.data_received(request[start : start + piece_bytes])
        await ended(protocol)
        assert transport.sent.endswith(b"\r\n\r\nhello")


async def test_requests_before_what_is_not_http_are_answered_first():
    port = Port(echo)
    protocol, transport = port.connect()
    accepted = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\n"
    broken = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nno length\r\n"
    protocol.data_received(accepted + b"first" + accepted + b"other" + broken)
    protocol.data_received(b"more of it")
    await asyncio.wait_for(transport.closed.wait(), 10)
    answers = transport.sent.split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200", b"200", b"400"]
    assert [answer[-5:] for answer in answers[:2]] == [b"first", b"other"]
    assert port.refused == ["malformed-request"]


async def test_a_body_that_breaks_off_ends_its_request_with_400():
    seen = []

    async def read(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])
        seen.append("gone")
        await answer(scope, receive, send)  # goes nowhere

    port = Port(read)
    protocol, transport = port.connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
    await asyncio.sleep(0)
    protocol.data_received(b"no length\r\n")
    await ended(protocol)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert seen == [b"a", "gone"]
    assert transport.sent.startswith(b"HTTP/1.1 400 ")
    assert transport.sent.count(b"HTTP/1.1 ") == 1


async def test_chunks_that_hold_nothing_end_after_a_while():
    protocol, transport = Port(echo).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    for _ in range(MAX_HEADER_BYTES // 10_000 + 1):
        assert transport.sent == b""
        protocol.data_received(b"x: y\r\n" * 1_667)
    assert transport.sent.startswith(b"HTTP/1.1 400 ")


async def test_trailers_are_no_headers():
    seen = []

    async def look(scope, receive, send):
        await echo(scope, receive, send)
        seen.extend(scope["headers"])

    protocol, _ = Port(look).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    protocol.data_received(b"authorization: Bearer x\r\n\r\n")
    await ended(protocol)
    assert seen == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


@pytest.mark.parametrize("headers", [[], [(b"connection", b"close")]], ids=["HTTP/1.0", "the service's wish"])
async def test_a_whole_answer_is_one_write_and_closes_where_it_should(headers):
    async def respond(scope, receive, _send):
        await receive()
        await scope["extensions"][WHOLE]["respond"](200, [(b"content-length", b"2"), *headers], b"ok")

    protocol, transport = Port(respond).connect()
    protocol.data_received(REQUEST if headers else REQUEST.replace(b"1.1", b"1.0"))
    await ended(protocol)
    assert transport.sent == b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok"
    assert transport.closed.is_set()


@pytest.mark.parametrize("behind", [b"", REQUEST], ids=["alone", "with another behind it"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_request_is_told_when_its_client_leaves(when, behind):
    told, asks = asyncio.Event(), asyncio.Event()

    async def wait(scope, receive, _send):
        await receive()
        if when == "before":
            protocol.connection_lost(None)
        scope["extensions"][WHEN_GONE]["tell"](told.set)
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


@pytest.mark.parametrize("piece_bytes", [1 << 30, 50_000, 10_000])
@pytest.mark.parametrize(("header_bytes", "status"), [(MAX_HEADER_BYTES - 100, b"200"), (MAX_HEADER_BYTES + 1, b"400")])
async def test_too_large_a_header_gets_400_however_it_arrives(header_bytes, status, piece_bytes):
    protocol, transport = Port().connect()
    request = REQUEST[:-2] + b"x-more: "
    request += b"x" * (header_bytes - len(request) - 4) + b"\r\n\r\n"
    what_follows = bytes(100_000)
    for start in range(0, len(request), piece_bytes):
        protocol.data_received(request[start : start + piece_bytes] + what_follows * (piece_bytes > len(request)))
    while not transport.sent:
        await asyncio.sleep(0)
    assert transport.sent.startswith(b"HTTP/1.1 " + status)


async def test_a_connection_too_many_is_closed_and_one_that_ends_makes_room():
    port = Port(max_connections=2)
    first, _ = port.connect()
    _, second = port.connect()
    third, refused = port.connect()
    assert refused.aborted
    assert not second.is_closing()
    assert port.refused == ["too-many-connections"]
    third.connection_lost(None)
    first.connection_lost(None)
    _, fourth = port.connect()
    assert not fourth.is_closing()


async def test_a_client_that_does_not_read_is_closed_and_one_that_reads_again_is_not():
    protocol, transport = Port(unread_timeout_s=0.01).connect()
    protocol.pause_writing()
    protocol.resume_writing()
    assert protocol._unread_timer is None
    protocol.pause_writing()
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert transport.aborted


async def test_the_end_of_a_connection_ends_its_timers():
    protocol, _ = Port().connect()
    protocol.pause_writing()
    timers = [protocol._header_timer, protocol._unread_timer]
    protocol.connection_lost(ConnectionResetError())
    assert all(timer.cancelled() for timer in timers)


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
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _which: now[-1])
    monkeypatch.setattr(connections.resource, "setrlimit", lambda _which, limits: now.append(limits))
    assert connections_within_files(wanted) == allowed
    assert (now[-1] if len(now) > 1 else None) in (raised, (soft, hard))
