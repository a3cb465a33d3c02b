"""The soak's clients notice what they are there to notice."""

import asyncio
import random

import httpx
import numpy as np
import pytest

from benchmarks.soak_figure import draw
from benchmarks.traffic import Traffic

pytestmark = pytest.mark.anyio

EXPECTED = {"v1": np.array([[0.9, 0.1], [0.2, 0.8]], np.float32), "v2": np.array([[0.1, 0.9], [0.8, 0.2]], np.float32)}


def answer(version, rows):
    def ranked(row):
        every = [{"label": str(index), "index": index, "probability": value} for index, value in enumerate(row)]
        return {"probabilities": sorted(every, key=lambda one: -one["probability"])}

    return {"model": {"name": "x", "version": version}, "predictions": [ranked(row) for row in rows]}


def client(handler):
    return httpx.AsyncClient(base_url="http://x", transport=httpx.MockTransport(handler))


def test_an_answer_is_compared_with_the_version_that_it_names():
    traffic = Traffic(0, [b"a", b"b"], EXPECTED)
    traffic._verify([1, 0], answer("v1", [[0.2, 0.8], [0.9, 0.1]]))
    traffic._verify([0], answer("v2", [[0.1, 0.9]]))
    assert (traffic.tally.problems, traffic.tally.verified_images) == ([], 3)
    traffic._verify([0], answer("v2", [[0.9, 0.1]]))
    assert traffic.tally.problems == ["good client: an answer of v2 is off by 0.8000"]
    assert set(traffic.tally.versions) == {"v1", "v2"}


async def test_a_good_request_that_is_refused_and_a_bad_one_that_is_not_are_problems():
    traffic = Traffic(0, [b"a", b"b"], EXPECTED)
    async with client(lambda _request: httpx.Response(503, text="no")) as http:
        await traffic._good(http, random.Random(0))
    async with client(lambda _request: httpx.Response(200)) as http:
        await traffic._bad(http, random.Random(0))
    assert traffic.tally.problems[0] == "good client: 503 no"
    assert "200 in place of 4" in traffic.tally.problems[1]


async def test_a_connection_that_breaks_is_a_lost_request_and_one_that_is_refused_is_not():
    async def hang_up(reader, writer):
        await reader.readline()
        writer.close()

    traffic = Traffic(0, [b"a", b"b"], EXPECTED)
    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        traffic.port = server.sockets[0].getsockname()[1]
        asking = asyncio.create_task(traffic._asking(traffic._good, 0))
        while not traffic.tally.problems:
            await asyncio.sleep(0.01)
    while not traffic.tally.answers["not accepted"]:
        await asyncio.sleep(0.01)
    traffic._stopping = True
    await asking
    assert all(one.startswith("good client: no answer: ") for one in traffic.tally.problems)


def test_the_figure_is_drawn_from_the_report_alone(tmp_path):
    held = {"resident_mb": 800.0, "open_files": 15, "threads": 12, "tasks": 4.0}
    samples = [{"seconds": 5.0 * number, **held} for number in range(5)]
    events = [{"seconds": 6.0, "event": "reload"}, {"seconds": 9.0, "event": "SIGTERM"}]
    draw({"samples": samples, "events": events}, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").read_bytes().startswith(b"\x89PNG")
