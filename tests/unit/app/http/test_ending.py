"""How a connection ends: in time, and with what its client is owed."""

import asyncio
import random

import pytest

from app.http.answering import RESPONSE_PIECE_BYTES
from tests.connections import HALF, REQUEST, Port, ended, responding

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_linger")]

CLOSE = (b"connection", b"close")


def port_for(body):
    """Where one response of this body may be unread, and no more."""
    port = Port(responding(body=body))
    port.unread.max_bytes = len(body)
    return port


async def test_a_client_that_does_not_read_is_closed_and_one_that_reads_again_is_not():
    protocol, transport = Port(unread_timeout_s=0.01).connect()
    protocol.pause_writing()
    protocol.resume_writing()
    assert protocol._ending._abort_timer is None
    protocol.pause_writing()
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert transport.aborted


async def test_a_connection_that_closes_has_its_time_for_what_is_not_sent_yet():
    """A transport closes once all is sent, which a client that does not read never lets it."""
    protocol, _ = Port().connect()
    protocol.data_received(REQUEST.replace(b"host: x", b"host: x\r\nconnection: close"))
    await ended(protocol)
    timer = protocol._ending._abort_timer
    assert not timer.cancelled()
    protocol.pause_writing()
    protocol.resume_writing()  # a part of it has been read
    assert protocol._ending._abort_timer is timer
    assert not timer.cancelled()
    protocol.connection_lost(None)
    assert timer.cancelled()


@pytest.mark.parametrize("sent", [b"", HALF], ids=["idle", "half a header"])
async def test_a_tls_client_that_does_not_say_goodbye_does_not_hold_up_a_drain(monkeypatch, sent):
    monkeypatch.setattr("app.http.ending.LAST_S", 0.01)
    protocol, transport = Port().connect()
    aborted = asyncio.Event()
    transport.can_write_eof, transport.abort = (lambda: False), aborted.set
    if sent:
        protocol.data_received(sent)
    protocol.shutdown()
    if sent:
        assert not transport.is_closing()
        protocol._close_late()  # the rest has not come
    assert transport.is_closing()
    await asyncio.wait_for(aborted.wait(), 10)


async def test_a_large_answer_is_sent_as_it_is_read_and_counts_as_unread_until_then():
    body = random.Random(0).randbytes(2 * RESPONSE_PIECE_BYTES + 1)
    port = port_for(body)
    protocol, transport = port.connect()
    protocol.data_received(REQUEST)
    protocol.pause_writing()
    for _ in range(5):
        await asyncio.sleep(0)
    assert transport.sent == b""
    protocol.resume_writing()
    while not transport.sent:
        await asyncio.sleep(0)
    assert transport.sent.endswith(body)  # this transport takes all at once
    await ended(protocol)
    assert port.unread.held_bytes == 0
    assert not transport.is_closing()


async def test_a_client_that_stops_to_read_a_large_answer_holds_what_is_left_of_it(caplog):
    body = bytes(3 * RESPONSE_PIECE_BYTES)
    sent = []
    port = port_for(body)
    protocol, transport = port.connect()

    def write(data):
        sent.append(len(data))
        if len(sent) == 2:  # the header and the first piece
            transport.unread = len(data)
            protocol.pause_writing()

    transport.write = write
    protocol.data_received(REQUEST)
    while len(sent) < 2:
        await asyncio.sleep(0)
    assert port.unread.held_bytes == len(body)
    other, other_transport = port.connect()
    other.data_received(REQUEST)
    while not other_transport.sent:
        await asyncio.sleep(0)
    assert other_transport.sent.startswith(b"HTTP/1.1 429 ")  # there is no room for another one
    assert not other_transport.is_closing()
    assert port.refused == []
    protocol.resume_writing()
    await ended(protocol)
    assert sent[1:] == [RESPONSE_PIECE_BYTES] * 3
    assert not caplog.records
    assert port.unread.held_bytes == 0


async def test_what_is_left_of_a_large_answers_last_piece_counts_until_it_is_read():
    body = bytes(RESPONSE_PIECE_BYTES + 1)
    port = port_for(body)
    protocol, transport = port.connect()

    def write(data):
        if len(data) == 1:  # the last piece
            transport.unread = 500
            protocol.pause_writing()

    transport.write = write
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert port.unread.held_bytes == 500
    protocol.resume_writing()
    assert port.unread.held_bytes == 0


async def test_what_all_clients_leave_unread_is_bounded():
    port = Port()
    (first, first_transport), (second, second_transport) = port.connect(), port.connect()
    first_transport.unread, second_transport.unread = 60, 50
    first.pause_writing()
    assert port.unread.held_bytes == 60
    second.pause_writing()
    assert (second_transport.aborted, port.unread.held_bytes) == (True, 60)
    first.resume_writing()
    assert port.unread.held_bytes == 0
    first.pause_writing()
    first.connection_lost(None)
    second.connection_lost(None)
    assert port.unread.held_bytes == 0
    assert not first_transport.aborted


@pytest.mark.parametrize("end", ["refused", "idle", "late"])
async def test_a_client_that_never_takes_the_last_bytes_does_not_keep_the_connection(end):
    """A transport closes once all is sent, which a client that does not read never lets it."""
    protocol, transport = Port(unread_timeout_s=0.01).connect()
    if end == "refused":
        protocol.data_received(HALF)
        protocol._close_late()
    elif end == "idle":
        transport.unread = 1
        protocol.timeout_keep_alive_handler()
    else:
        transport.unread = 1
        protocol._close_late()
    async with asyncio.timeout(10):
        while not transport.aborted:
            await asyncio.sleep(0.001)


async def test_a_header_of_which_a_part_has_come_is_answered_when_the_connection_is_to_be_closed():
    protocol, transport = Port(responding()).connect()
    protocol.data_received(REQUEST[:20])
    protocol.shutdown()
    assert not transport.is_closing()
    assert protocol._header_timer.when() < protocol.loop.time() + 2
    protocol.data_received(REQUEST[20:])
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in transport.sent
    assert transport.is_closing()


@pytest.mark.parametrize("count", [2, 400], ids=["few", "more than are parsed"])
@pytest.mark.parametrize("when", ["before", "unread"])
async def test_of_requests_in_a_row_only_the_last_ones_answer_closes_when_the_connection_is_to_be_closed(when, count):
    protocol, transport = Port(responding()).connect()
    protocol.has_unread = lambda: when == "unread"
    if when == "before":
        protocol.data_received(REQUEST * count)
    protocol.shutdown()
    if when == "unread":
        protocol.data_received(REQUEST * count)
    async with asyncio.timeout(10):
        while not transport.is_closing():
            await asyncio.sleep(0)
    assert transport.sent.count(b"HTTP/1.1 200 ") == count
    assert transport.sent.count(b"connection: close") == 1
    assert transport.sent.endswith(b"connection: close\r\n\r\n")


async def test_half_a_header_that_was_unread_when_the_connection_was_to_be_closed_has_as_little_time():
    protocol, _ = Port().connect()
    protocol.has_unread = lambda: True
    protocol.shutdown()
    protocol.data_received(HALF)
    assert protocol._header_timer.when() < protocol.loop.time() + 2


async def test_a_refused_client_that_still_sends_its_body_is_not_reset_by_a_drain():
    protocol, transport = Port(responding(413, CLOSE)).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
    await ended(protocol)
    protocol.shutdown()
    assert transport.sent.startswith(b"HTTP/1.1 413 ")
    assert not transport.is_closing()
    await asyncio.wait_for(transport.closed.wait(), 10)


async def test_a_refused_client_that_still_sends_its_body_is_not_reset(monkeypatch):
    monkeypatch.setattr("app.http.answering.LINGER_S", 3600)

    protocol, transport = Port(responding(408, CLOSE)).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc")
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 408")
    assert transport.half_closed
    protocol.data_received(b"more")
    assert not transport.is_closing()
    protocol._ending._linger_timer._run()  # its time is over
    assert transport.is_closing()
    assert not transport.aborted


async def test_half_a_header_that_never_comes_to_its_end_is_closed_without_an_answer_in_a_drain():
    protocol, transport = Port().connect()
    protocol.data_received(HALF)
    protocol.shutdown()
    protocol._close_late()
    assert transport.is_closing()
    assert transport.sent == b""
