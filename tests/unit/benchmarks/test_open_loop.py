import asyncio

import numpy as np
import pytest

from benchmarks.load import post
from benchmarks.memory import mixture, send
from benchmarks.open_loop import Connections, Exchange, evaluate, median_of, open_loop, poisson_arrivals

REQUEST = post("/predict", b"picture", {"content-type": "image/png"})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REFUSED_AND_CLOSED = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\nConnection: close\r\n\r\nfull"


class Server:
    """Answers each request when `ready` is set; counts requests and connections."""

    def __init__(self, answer=OK):
        self.answer = answer
        self.requests = self.connections = 0
        self.arrived = asyncio.Event()
        self.ready = asyncio.Event()

    async def handle(self, reader, writer):
        self.connections += 1
        try:
            while True:
                await reader.readexactly(len(REQUEST))
                self.requests += 1
                self.arrived.set()
                await self.ready.wait()
                writer.write(self.answer)
        except asyncio.IncompleteReadError:
            writer.close()


@pytest.mark.anyio
async def test_requests_are_sent_when_they_are_due_whether_or_not_answers_come():
    server = Server()
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        running = asyncio.ensure_future(open_loop(port, REQUEST, np.array([0.0, 0.001, 0.002]), 3))
        while server.requests < 3:
            server.arrived.clear()
            await server.arrived.wait()
        server.ready.set()
        exchanges = await running
    assert [one.status for one in exchanges] == [200] * 3
    assert server.connections == 3


@pytest.mark.anyio
async def test_latency_counts_from_when_a_request_was_due_not_from_when_it_was_sent():
    server = Server()
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        running = asyncio.ensure_future(open_loop(port, REQUEST, np.array([0.0, 0.0]), 1))
        await server.arrived.wait()
        server.ready.set()
        first, second = await running
    assert server.connections == 1
    assert second.sent >= first.ended
    assert second.latency > first.latency  # though it was sent only when the first one had its answer


@pytest.mark.anyio
async def test_a_connection_that_the_service_closes_is_not_used_again():
    server = Server(REFUSED_AND_CLOSED)
    server.ready.set()
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        connections = Connections(listening.sockets[0].getsockname()[1], 1)
        assert [(await connections.ask(REQUEST))[1] for _ in range(2)] == [429, 429]
        connections.close()
    assert server.connections == 2
    assert (await connections.ask(REQUEST))[1] == 0  # nobody listens any more


def test_arrivals_are_a_poisson_process_of_the_rate_and_the_same_for_a_seed():
    due = poisson_arrivals(100.0, 100.0, seed=1)
    np.testing.assert_array_equal(due, poisson_arrivals(100.0, 100.0, seed=1))
    gaps = np.diff(due)
    assert len(due) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)  # as exponential gaps have it
    assert due[-1] < 100


def test_the_figures_of_a_window():
    exchanges = [
        Exchange(0.5, 0.5, 1.5, 200),  # due before the window, answered in it
        Exchange(1.0, 1.0, 1.1, 200),
        Exchange(1.2, 1.25, 1.7, 200),  # sent late, and answered after the deadline of 0.3 s, as the first one
        Exchange(1.5, 1.5, 1.502, 429),
        Exchange(1.6, 1.6, 1.6, 0),
        Exchange(1.9, 1.9, 2.1, 200),  # answered after the window
        Exchange(2.0, 2.0, 2.1, 200),
    ]
    assert evaluate(exchanges, 1.0, 2.0, 0.3) == {
        "offered_per_s": 5.0,
        "goodput_per_s": 1.0,
        "p50_ms": pytest.approx(200),
        "p99_ms": pytest.approx(494),
        "refused_share": 0.2,
        "refusal_p99_ms": pytest.approx(2),
        "accepted_within_deadline_share": 0.6667,
        "failed": 1,
        "sent_late": 1,
    }
    nothing = evaluate([Exchange(1.5, 1.5, 1.502, 429)], 1.0, 2.0, 0.3)
    assert (nothing["p99_ms"], nothing["accepted_within_deadline_share"]) == (None, None)
    assert median_of([nothing, {**nothing, "p99_ms": 3.0}])["p99_ms"] == 3.0


@pytest.mark.anyio
async def test_the_memory_run_sends_as_many_requests_as_it_says():
    server = Server()
    server.ready.set()
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        assert await send(listening.sockets[0].getsockname()[1], [REQUEST], 1000) == {200: 1000}
    assert server.requests == 1000


def test_the_mixture_has_every_form_and_is_complete_requests():
    requests = mixture()
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")
    kinds = ("image/png", "multipart/form-data", "application/json", "application/x-npy")
    assert all(any(kind.encode() in request for request in requests) for kind in kinds)
