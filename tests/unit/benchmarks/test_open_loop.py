import asyncio

import numpy as np
import pytest

from app.settings import Settings
from benchmarks import open_loop
from benchmarks.load import post
from benchmarks.memory import mixture, send
from benchmarks.open_loop import evaluate, median_of, worst_of
from benchmarks.sender import Outcomes

REQUEST = post("/predict", b"picture", {"content-type": "image/png"})
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers each request; counts them."""

    def __init__(self):
        self.requests = 0

    async def handle(self, reader, writer):
        try:
            while True:
                await reader.readexactly(len(REQUEST))
                self.requests += 1
                writer.write(OK)
        except asyncio.IncompleteReadError:
            writer.close()


def outcomes(*requests):
    """Each request as (due, sent, ended, status)."""
    due, sent, ended, status = (np.array(column) for column in zip(*requests, strict=True))
    return Outcomes(due, sent, ended, status, 0)


def test_the_figures_of_a_window():
    requests = outcomes(
        (0.5, 0.5, 1.5, 200),  # due before the window, answered in it
        (1.0, 1.0, 1.1, 200),
        (1.2, 1.25, 1.7, 200),  # sent late, and answered after the deadline of 0.3 s, as the first one
        (1.5, 1.5, 1.502, 429),
        (1.6, 1.6, np.nan, 0),
        (1.7, np.nan, np.nan, 0),  # it was never sent
        (1.9, 1.9, 2.1, 200),  # answered after the window
        (2.0, 2.0, 2.1, 200),
    )
    assert evaluate(requests, 1.0, 2.0, 0.3) == {
        "offered_per_s": 6.0,
        "goodput_per_s": 1.0,
        "p50_ms": pytest.approx(200),
        "p99_ms": pytest.approx(494),
        "refused_share": 0.1667,
        "refusal_p99_ms": pytest.approx(2),
        "kept_deadline_share": 0.4,  # two of five: one was late, two have no answer
        "failed": 2,
        "sent_late": 1,
    }
    nothing = evaluate(outcomes((1.5, 1.5, 1.502, 429)), 1.0, 2.0, 0.3)
    assert (nothing["p99_ms"], nothing["kept_deadline_share"]) == (None, None)
    assert median_of([nothing, {**nothing, "p99_ms": 3.0}])["p99_ms"] == 3.0


def test_what_failed_in_one_round_of_many_is_told():
    quiet, bad = {"failed": 0, "sent_late": 3, "p99_ms": 1.0}, {"failed": 2, "sent_late": 0, "p99_ms": 2.0}
    assert worst_of([quiet, bad, quiet]) == {"failed": 2, "sent_late": 3}
    assert median_of([quiet, bad, quiet]) == {"p99_ms": 1.0}


def test_each_load_is_a_share_of_the_rate_right_before_it_and_has_the_one_right_after(monkeypatch):
    order, rates = [], iter([100.0, 200.0, 300.0, 400.0, 500.0])

    def closed_loop(_wrk, _url, clients, _seconds):
        rate = 7.0 if clients == 1 else next(rates)
        order.append((clients, rate))
        return {"requests_per_s": rate, "p50_ms": 1.0}

    def send_at_random(_port, _requests, rate, _seed, **_window):
        order.append(("random", rate))
        return {"p50_ms": 2.0}

    monkeypatch.setattr(open_loop.closed_loop, "run", closed_loop)
    monkeypatch.setattr(open_loop, "send_at_random", send_at_random)
    found = open_loop.one_round(None, 0, [REQUEST], Settings(device="cpu"), 0)
    loads = [(64, 100.0), ("random", 50.0), (64, 200.0), ("random", 160.0), (64, 300.0), ("random", 285.0)]
    assert order == [(1, 7.0), ("random", open_loop.LONE_PER_S), *loads, (64, 400.0), ("random", 600.0), (64, 500.0)]
    assert found["lone by sender"]["p50_ms"] == 2.0
    assert (found["80%"]["saturated_before_per_s"], found["80%"]["saturated_after_per_s"]) == (200.0, 300.0)
    assert open_loop._saturated_per_s(found["150%"]) == 450.0


@pytest.mark.anyio
async def test_the_memory_run_sends_as_many_requests_as_it_says():
    server = Server()
    async with await asyncio.start_server(server.handle, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        assert await asyncio.to_thread(send, port, [REQUEST], 1000) == {200: 1000}
    assert server.requests == 1000


def test_the_mixture_has_every_form_and_is_complete_requests():
    requests = mixture()
    for request in requests:
        head, _, body = request.partition(b"\r\n\r\n")
        assert f"content-length: {len(body)}".encode() in head.split(b"\r\n")
    kinds = ("image/png", "multipart/form-data", "application/json", "application/x-npy")
    assert all(any(kind.encode() in request for request in requests) for kind in kinds)
