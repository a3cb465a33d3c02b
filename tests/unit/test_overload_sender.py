"""The sender of the overload test counts what it must: an answer, a refusal without Retry-After, a loss."""

import asyncio

import pytest

from tests.overload import Sender

pytestmark = pytest.mark.anyio

GOOD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
NO_RETRY_AFTER = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


async def report_of(answers, rate=200, seconds=0.1):
    """What the sender reports of a service that gives these answers in turn; None closes the connection instead."""

    async def handle(reader, writer):
        try:
            while await reader.readexactly(3):
                answer = answers.pop(0)
                if answer is None:
                    break
                writer.write(answer)
        except asyncio.IncompleteReadError:
            pass
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as server:
        sender = Sender(server.sockets[0].getsockname()[1], b"GET")
        await asyncio.to_thread(sender.run, rate, seconds)
        return sender.report()


async def test_every_request_is_sent_and_counted_by_its_answer():
    report = await report_of([GOOD] * 15 + [REFUSED] * 3 + [NO_RETRY_AFTER] * 2)
    assert report["sent"] == 20
    assert report["statuses"] == {"200": 15, "429": 5}
    assert report["429_without_retry_after"] == 2
    assert (report["unanswered"], report["not_sent"]) == (0, 0)
    assert all(begun < answered for begun, answered in report["good"])
    assert report["sending_s"] >= 0.09


async def test_a_connection_that_closes_without_an_answer_is_a_loss():
    report = await report_of([None] * 20)
    assert (report["sent"], report["unanswered"], report["statuses"]) == (20, 20, {})


async def test_what_finds_every_connection_waiting_is_not_sent_but_counted(monkeypatch):
    monkeypatch.setattr("tests.overload.CONNECTIONS", 2)
    monkeypatch.setattr("tests.overload.PATIENCE_S", 0.1)
    report = await report_of([b""] * 20)
    assert (report["sent"], report["not_sent"], report["unanswered"]) == (2, 18, 2)
