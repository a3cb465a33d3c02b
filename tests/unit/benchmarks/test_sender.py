"""The open-loop sender sends in time whatever comes back, and counts what it must."""

import asyncio
import json
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks.load import post
from benchmarks.sender import ScheduledSender, even_arrivals, poisson_arrivals
from tests import overload

pytestmark = pytest.mark.anyio

REQUESTS = [post("/predict", body, {"content-type": "image/png"}) for body in (b"picture", b"another")]
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
IN_CHUNKS = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"
REFUSED_AND_CLOSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\nConnection: close\r\n\r\nfull"


class Server:
    """Gives `answers` in turn, None for closing the connection instead, once so many requests have come."""

    def __init__(self, answers, after=0):
        self.answers = answers
        self.after = after
        self.requests = []
        self.connections = 0
        self.enough = asyncio.Event()

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while True:
                self.requests.append(await reader.readexactly(len(REQUESTS[0])))
                answer = self.answers.pop(0)
                if len(self.requests) >= self.after:
                    self.enough.set()
                await self.enough.wait()
                if answer is None:
                    break
                for at in range(len(answer)) if answer is IN_CHUNKS else [None]:
                    writer.write(answer if at is None else answer[at : at + 1])
                    await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        writer.close()


async def outcomes_of(server, arrivals, patience_s=60.0, **options):
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.array(arrivals), **options)
        sending_s = await asyncio.to_thread(sender.send)
        assert sending_s >= max(arrivals)
        return await asyncio.to_thread(sender.finish, patience_s)


async def test_requests_are_sent_in_turn_when_they_are_due_whether_or_not_answers_come():
    server = Server([GOOD] * 3, after=3)
    outcomes = await outcomes_of(server, [0.0, 0.001, 0.002])
    assert outcomes.status.tolist() == [200] * 3
    assert (outcomes.due <= outcomes.sent).all()
    assert server.connections == 3
    assert sorted(server.requests) == sorted([REQUESTS[0], REQUESTS[1], REQUESTS[0]])


async def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent():
    server = Server([GOOD] * 2)
    outcomes = await outcomes_of(server, [0.0, 0.0], most=1)
    assert server.connections == 1
    assert outcomes.sent[1] >= outcomes.ended[0]  # it waits for the only connection
    assert outcomes.latency[1] > outcomes.latency[0]


async def test_an_answer_counts_when_it_is_whole():
    server = Server([IN_CHUNKS, GOOD])
    outcomes = await outcomes_of(server, [0.0, 0.0], most=1)
    assert outcomes.status.tolist() == [200, 200]
    assert server.requests == REQUESTS


async def test_refusals_are_told_apart_and_what_they_lack_is_counted():
    server = Server([GOOD, REFUSED, REFUSED_AND_CLOSED, REFUSED])
    outcomes = await outcomes_of(server, [0.0] * 4, most=1)
    assert outcomes.status.tolist() == [200, 429, 429, 429]
    assert outcomes.without_retry_after == 1
    assert server.connections == 2  # the one that was to be closed is not used again


async def test_a_connection_that_closes_without_an_answer_is_a_loss_and_nothing_else_is():
    server = Server([GOOD, None, GOOD])
    outcomes = await outcomes_of(server, [0.0] * 3, most=1)
    assert outcomes.status.tolist() == [200, 0, 200]
    assert np.isnan(outcomes.ended).tolist() == [False, True, False]


async def test_an_answer_that_never_comes_is_not_waited_for_longer_than_asked():
    outcomes = await outcomes_of(Server([GOOD, GOOD], after=3), [0.0, 0.0], patience_s=0.05)
    assert outcomes.status.tolist() == [0, 0]


async def test_where_nobody_listens_everything_is_lost():
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
    sender = ScheduledSender(port, REQUESTS, np.zeros(3))
    sender.send()
    assert sender.finish().status.tolist() == [0, 0, 0]


async def test_a_server_that_closes_idle_connections_costs_no_request(monkeypatch):
    closed, looks = threading.Event(), []

    def sleep(seconds):
        time.sleep(seconds)
        if closed.is_set():
            looks.append(seconds)

    # The second request is due once the sender has had two looks at what has come: the answer and the end. It looks by
    # the clock, because that many requests are due at once.
    clock = SimpleNamespace(perf_counter=lambda: float(len(looks) > 2), sleep=sleep)
    monkeypatch.setattr("benchmarks.sender.time", clock)

    async def one_answer(reader, writer):
        await reader.readexactly(len(REQUESTS[0]))
        writer.write(GOOD)
        writer.close()
        await writer.wait_closed()
        closed.set()

    async with await asyncio.start_server(one_answer, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.array([0.0, 0.001]), most=1)
        await asyncio.to_thread(sender.send)
        assert closed.is_set()
        assert (await asyncio.to_thread(sender.finish)).status.tolist() == [200, 200]


async def test_where_few_requests_are_due_nothing_waits_for_the_pace(monkeypatch):
    def sleep(_seconds):
        raise AssertionError("the sender slept beside what was due or had come")

    monkeypatch.setattr("benchmarks.sender.time", SimpleNamespace(perf_counter=time.perf_counter, sleep=sleep))
    outcomes = await outcomes_of(Server([GOOD] * 3), [0.0, 0.01, 0.02])
    assert outcomes.status.tolist() == [200] * 3
    with pytest.raises(AssertionError, match="slept"):
        await outcomes_of(Server([GOOD] * 50), even_arrivals(2000.0, 0.025))


async def test_connections_opened_before_are_those_that_requests_take():
    server = Server([GOOD] * 5)
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.zeros(2), most=3)
        assert await asyncio.to_thread(sender.open_idle, 4, 0.0, REQUESTS[0]) == 3, "as many as may be open"
        assert server.connections == len(server.requests) == 3
        await asyncio.to_thread(sender.send)
        assert (await asyncio.to_thread(sender.finish)).status.tolist() == [200] * 2
    assert (server.connections, sender.opened) == (3, 0)


async def test_a_connection_that_is_closed_before_it_was_answered_is_told_at_once():
    server = Server([None])
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.zeros(2))
        with pytest.raises(ConnectionError):
            await asyncio.to_thread(sender.open_idle, 1, 0.0, REQUESTS[0])


async def test_a_server_may_close_what_is_about_to_be_closed(monkeypatch):
    writers, ended = [], threading.Event()

    async def handle(reader, writer):
        writers.append(writer)
        while await reader.read(len(REQUESTS[0])):
            writer.write(GOOD)
        for other in writers:
            other.close()
        ended.set()

    clock = SimpleNamespace(perf_counter=time.perf_counter, sleep=lambda _seconds: ended.wait(10) and time.sleep(0.05))
    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.zeros(1))
        await asyncio.to_thread(sender.open_idle, 10, 0.0, REQUESTS[0])
        await asyncio.to_thread(sender.send)
        monkeypatch.setattr("benchmarks.sender.time", clock)
        assert (await asyncio.to_thread(sender.finish, 10.0)).status.tolist() == [200]


@pytest.mark.parametrize(("opened_before", "due"), [(2, 1), (0, 2)])
async def test_connections_are_closed_while_the_last_answer_is_awaited_on_another_one(opened_before, due):
    """Else the service would close them, in the time that is measured next: one that no request took, one answered."""
    closed = asyncio.Event()
    requests = 0

    async def handle(reader, writer):
        nonlocal requests
        while await reader.read(len(REQUESTS[0])):
            requests += 1
            if requests == opened_before + due:
                await closed.wait()
            writer.write(GOOD)
        closed.set()
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
        sender = ScheduledSender(listening.sockets[0].getsockname()[1], REQUESTS, np.zeros(due))
        await asyncio.to_thread(sender.open_idle, opened_before, 0.0, REQUESTS[0])
        await asyncio.to_thread(sender.send)
        assert (await asyncio.to_thread(sender.finish, 10.0)).status.tolist() == [200] * due


async def test_the_overloads_sender_sends_and_reports_when_it_is_told(monkeypatch, capsys, tmp_path):
    told = []
    picture = tmp_path / "picture"
    picture.write_bytes(b"picture")
    server = Server([GOOD, REFUSED])

    def readline():
        told.append((capsys.readouterr().out, len(server.requests)))
        return "\n"

    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        port = str(listening.sockets[0].getsockname()[1])
        monkeypatch.setattr("sys.stdin", SimpleNamespace(readline=readline))
        monkeypatch.setattr("sys.argv", ["overload", port, "1000", "0.002", str(picture)])
        await asyncio.to_thread(overload.main)
    assert told == [("ready\n", 0), ("sent\n", 2)]
    report = json.loads(capsys.readouterr().out)
    assert report["statuses"] == {"200": 1, "429": 1}
    assert (report["connections_before"], report["connections_opened"]) == (0, server.connections)


def test_random_arrivals_are_a_poisson_process_of_the_rate_and_the_same_for_a_seed():
    due = poisson_arrivals(100.0, 100.0, seed=1)
    np.testing.assert_array_equal(due, poisson_arrivals(100.0, 100.0, seed=1))
    gaps = np.diff(due)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential gaps have it
    assert due[-1] < 100


def test_even_arrivals_are_as_many_as_asked_for():
    np.testing.assert_allclose(even_arrivals(200.0, 0.02), [0.0, 0.005, 0.01, 0.015])
