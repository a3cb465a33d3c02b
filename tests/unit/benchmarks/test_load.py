import asyncio
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import load as load_module
from benchmarks.load import LoadResult, closed_loop, closed_loop_windows, open_loop, post, summarise
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


def windows_of(answers, monkeypatch):
    """One client's windows from 10 to 20 and 20 to 30; each answer is (when it comes, what it is)."""
    clock = SimpleNamespace(now=0.0)
    left = list(answers)
    monkeypatch.setattr(load_module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    monkeypatch.setattr(load_module, "RETRY_S", 0.0)

    async def handle(reader, writer):
        while left:
            await reader.readexactly(len(REQUESTS[0]))
            clock.now, answer = left.pop(0)
            writer.write(answer)
        writer.close()

    async def run():
        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            return await closed_loop_windows(port, REQUESTS, 1, begin=10.0, window_s=10.0, count=2)

    return asyncio.run(run())


REFUSED = b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 4\r\n\r\nfull"
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"


def test_an_answer_counts_in_the_window_in_which_it_ends_and_a_refused_client_tries_again(monkeypatch):
    """The first good answer in a window was asked for before it, the last one comes after the windows."""
    answers = [(5.0, GOOD), (9.0, REFUSED), (12.0, GOOD), (13.0, REFUSED), (16.0, GOOD), (22.0, GOOD), (23.0, BROKEN)]
    windows = windows_of([*answers, (32.0, GOOD)], monkeypatch)
    assert windows.per_s == [2 / 10, 1 / 10]
    assert windows.times == [12.0 - 9.0, 16.0 - 13.0, 22.0 - 16.0]
    assert (windows.refused, windows.errors) == (1, 1)


def test_windows_are_from_batch_to_batch_but_a_halt_at_the_end_of_one_is_a_part_of_it(monkeypatch):
    """The first one is from 10.5 to 20.9, the second one from there to 30."""
    batches = [(at, GOOD) for at in (7.0, 10.5, 14.0, 17.5, 20.9, 24.0, 36.0) for _ in range(10)]
    assert windows_of(batches, monkeypatch).per_s == [round(30 / 10.4, 1), round(20 / 9.1, 1)]


def test_a_halt_at_the_beginning_of_a_window_is_a_part_of_it(monkeypatch):
    assert windows_of([(18.0, GOOD), (35.0, BROKEN)], monkeypatch).per_s == [1 / 10, 0.0]


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
