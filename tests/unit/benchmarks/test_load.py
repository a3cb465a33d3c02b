import asyncio
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import load as load_module
from benchmarks.load import LoadResult, closed_loop, open_loop, post, summarise
from benchmarks.sender import Outcomes

REQUESTS = [post("/predict", body, {"content-type": "image/png"}) for body in (b"picture", b"another")]
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


@asynccontextmanager
async def server(answer, seen):
    async def handle(reader, writer):
        try:
            while True:
                seen.append(await reader.readexactly(len(REQUESTS[0])))
                for part in answer:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
        except asyncio.IncompleteReadError:
            writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


async def closed(answer, seen, clients=1):
    async with server(answer, seen) as port:
        with over_after(12, seen):
            return await closed_loop(port, REQUESTS, clients, seconds=0.1)


@contextmanager
def over_after(count, seen):
    """Let the time of a closed loop be over once a server has seen so many requests, however long that takes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_module, "time", SimpleNamespace(perf_counter=lambda: float(len(seen) >= count)))
        yield


def test_every_client_sends_its_next_request_when_it_has_its_answer():
    seen = []
    load = asyncio.run(closed([GOOD], seen, clients=3))
    assert len(load.times) == len(seen) >= 12
    assert load.errors == 0
    assert set(seen) == set(REQUESTS)
    assert REQUESTS[0] == (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 7\r\ncontent-type: image/png\r\n\r\npicture"
    )


@pytest.mark.parametrize(
    "answer",
    [
        [GOOD[:10], GOOD[10:30], GOOD[30:-1], GOOD[-1:]],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", b"0\r\n\r\n"],
    ],
    ids=["in pieces", "in chunks"],
)
def test_an_answer_counts_when_it_is_whole(answer):
    seen = []
    load = asyncio.run(closed(answer, seen))
    assert len(load.times) == len(seen) == 12


def test_another_status_is_an_error():
    load = asyncio.run(closed([b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull"], []))
    assert not load.times
    assert load.errors == 12


def test_a_closed_connection_is_an_error_and_is_opened_again():
    seen = []

    async def one_answer_a_connection(reader, writer):
        seen.append(await reader.readexactly(len(REQUESTS[0])))
        writer.write(GOOD)
        seen.append(await reader.readexactly(len(REQUESTS[0])))
        writer.close()

    async def run():
        async with await asyncio.start_server(one_answer_a_connection, "127.0.0.1", 0) as listener:
            with over_after(12, seen):
                return await closed_loop(listener.sockets[0].getsockname()[1], REQUESTS, 1, 0.1)

    load = asyncio.run(run())
    assert (len(load.times), load.errors) == (6, 6)


def test_an_open_loop_does_not_wait_for_answers():
    waiting = []

    async def run():
        three_wait = asyncio.Event()

        async def handle(reader, writer):
            await reader.readexactly(len(REQUESTS[0]))
            waiting.append(writer)
            if len(waiting) == 3:
                three_wait.set()
            await three_wait.wait()
            writer.write(GOOD)

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            return await asyncio.to_thread(open_loop, port, REQUESTS, rate=5000, seconds=0.001, seed=5)

    load = asyncio.run(run())
    assert len(load.times) == len(waiting) >= 3
    assert load.errors == 0


def test_an_open_loop_counts_refused_connections():
    async def closed_port():
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as listener:
            return listener.sockets[0].getsockname()[1]

    load = open_loop(asyncio.run(closed_port()), REQUESTS, rate=1000, seconds=0.01)
    assert not load.times
    assert load.errors > 0


def test_answers_that_came_late_are_divided_by_the_time_that_they_took(monkeypatch):
    """None is missing, so that the rate is not above what was sent, but it is below."""

    class Sender:
        def __init__(self, _port, _requests, arrivals):
            self.due = arrivals

        def send(self):
            pass

        def finish(self, _patience_s):
            status = np.full(len(self.due), 200, np.int16)
            status[-1] = 429
            return Outcomes(self.due, self.due, np.linspace(0.5, 12.5, len(self.due)), status, 0)

    monkeypatch.setattr(load_module, "ScheduledSender", Sender)
    load = open_loop(0, REQUESTS, rate=100, seconds=5.0)
    assert load.errors == 1
    assert 12 < load.seconds < 12.5
    assert summarise(load)["requests_per_s"] == round(len(load.times) / load.seconds, 1)


def test_summary_is_in_milliseconds():
    assert summarise(LoadResult([0.001 * n for n in range(1, 101)], errors=2, seconds=10.0)) == {
        "requests_per_s": 10.0,
        "p50_ms": pytest.approx(50.5),
        "p99_ms": pytest.approx(99.01),
        "errors": 2,
    }
