"""Requests that come behind one another on a connection: how many are let in, and that all are answered in order."""

import asyncio

import pytest

from app.http.parsing import MAX_HEADER_BYTES, MAX_PIPELINED, MAX_WAITING_BODY_BYTES, PIECE_BYTES
from tests.connections import REQUEST, Port, echo

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_linger")]


async def test_a_second_request_behind_the_first_is_answered():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST + REQUEST)
    while transport.sent.count(b"HTTP/1.1 200 ") < 2:
        await asyncio.sleep(0)
    assert protocol._header_timer is None


async def numbered(scope, _receive, send):
    path = scope["path"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(path))]})
    await send({"type": "http.response.body", "body": path})


@pytest.mark.parametrize("read_bytes", [1000, PIECE_BYTES + 1, 1 << 18])
async def test_of_thousands_of_requests_at_once_few_wait_and_all_are_answered_in_order(read_bytes):
    count = 5000
    requests = b"".join(b"GET /%06d HTTP/1.1\r\nhost:\r\n\r\n" % number for number in range(count))
    protocol, transport = Port(numbered).connect()
    most, begin = 0, 0
    while transport.sent.count(b"HTTP/1.1 200 ") < count:
        if not protocol.flow.read_paused and begin < len(requests):
            protocol.data_received(requests[begin : begin + read_bytes])
            begin += read_bytes
        most = max(most, len(protocol.pipeline))
        await asyncio.sleep(0)
    assert most <= MAX_PIPELINED + PIECE_BYTES // 31 + 1
    answers = transport.sent.split(b"\r\n\r\n/")[1:]
    assert [int(one[:6]) for one in answers] == list(range(count))
    assert (protocol._unparsed, protocol.flow.held) == (b"", False)


@pytest.mark.parametrize("body_bytes", [22_000, 300_000])
async def test_of_bodies_behind_a_request_that_waits_few_bytes_wait_and_all_are_answered_in_order(body_bytes):
    """As many as are read behind each answer that a client takes."""
    may_answer = asyncio.Semaphore(0)

    async def slow(scope, receive, send):
        await may_answer.acquire()
        await echo(scope, receive, send)

    protocol, transport = Port(slow).connect()
    post = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % body_bytes
    requests = REQUEST * 10 + b"".join(post + b"%d" % number * body_bytes for number in range(5))
    most, answered, begin = 0, 0, 0
    while answered < 15:
        while not protocol.flow.read_paused and begin < len(requests):
            protocol.data_received(requests[begin : begin + 50_000])
            begin += 50_000
        most = max(most, sum(len(cycle.body) for cycle, _ in protocol.pipeline))
        if transport.sent.count(b"HTTP/1.1 200 ") == answered:
            may_answer.release()
        await asyncio.sleep(0)
        answered = transport.sent.count(b"HTTP/1.1 200 ")
    assert most <= MAX_WAITING_BODY_BYTES + PIECE_BYTES
    bodies = [answer.partition(b"\r\n\r\n")[2] for answer in transport.sent.split(b"HTTP/1.1 200 ")[1:]]
    assert bodies == [b""] * 10 + [b"%d" % number * body_bytes for number in range(5)]
    assert (protocol._unparsed, protocol.flow.held) == (b"", False)


async def test_what_stands_behind_too_many_requests_is_let_go_with_the_connection():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST * 5000)
    assert protocol._unparsed
    tasks = list(protocol.tasks)
    transport.close()
    protocol.connection_lost(None)
    await asyncio.gather(*tasks)
    assert (protocol._unparsed, len(protocol.pipeline)) == (b"", 0)


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


async def test_behind_as_many_requests_as_may_wait_nothing_is_parsed_read_or_refused():
    protocol, transport = Port().connect()
    protocol.data_received(REQUEST * (1 + MAX_PIPELINED))
    behind = REQUEST * (MAX_HEADER_BYTES // len(REQUEST) + 1)
    protocol.flow.resume_reading()  # as uvicorn does behind each answer
    protocol.data_received(behind)
    assert (len(protocol.pipeline), protocol._refusal) == (MAX_PIPELINED, None)
    assert protocol._unparsed == behind
    protocol.flow.resume_reading()
    assert protocol.flow.read_paused
    transport.abort()
    protocol.connection_lost(None)
