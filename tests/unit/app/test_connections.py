"""A connection over a transport that only notes what is done to it. These tests fail if uvicorn's hooks change."""

import asyncio
import json
import resource
from functools import partial

import pytest
import uvicorn
from uvicorn.server import ServerState

from app import connections
from app.connections import MAX_HEADER_BYTES, OTHER_FILES, Connection, ConnectionLimits, connections_within_files

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
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
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


@pytest.mark.parametrize(
    "junk", [b"\x16\x03\x01\x02\x00\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000, b"\r\n\r\n"]
)
async def test_what_is_not_http_gets_400(junk):
    port = Port()
    protocol, transport = port.connect()
    protocol.data_received(junk)
    assert transport.sent.startswith(b"HTTP/1.1 400 ")
    assert b"urn:resnet:problem:malformed-request" in transport.sent
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert protocol._header_timer is None
    assert port.refused == ["malformed-request"]


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
