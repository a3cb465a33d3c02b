"""Answers that take long to write: a thread does it, and nothing else waits for them."""

import asyncio
import re
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

from app.errors import DeadlinePassed
from app.routes import answers, fast_predict, predict
from tests.api.asking import assert_problem
from tests.api.conftest import serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine
from tests.npy_files import npy

pytestmark = pytest.mark.anyio

MANY = 1000  # classes
BOUNDARY = {"content-type": "multipart/form-data; boundary=b"}


class ManyClasses(FakeEngine):
    """Its probabilities come in tens of the same."""

    def __init__(self):
        super().__init__()
        self.card["classes"] = [f"class {index}" for index in range(MANY)]

    def run(self, images):
        return super().run(images).repeat(MANY // 10, axis=1) / (MANY // 10)


def form(*files):
    parts = [b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n%s\r\n' % file for file in files]
    return b"".join(parts) + b"--b--\r\n"


def body(images):
    return form(*(encode(noise(seed=seed)) for seed in range(images)), b"junk")


async def in_chunks(content):
    """A body that goes to the framework's route, however small."""
    yield content


WAYS = {"fast": lambda content: content, "framework": in_chunks}


@pytest.fixture
def on_the_loop(monkeypatch):
    """Whether each answer was written on the event loop."""
    noted, write = [], answers.write_answer

    def note(*given):
        noted.append(threading.current_thread() is threading.main_thread())
        return write(*given)

    for module in (answers, fast_predict, predict):
        monkeypatch.setattr(module, "write_answer", note)
    return noted


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("top_k", ["", "?top_k=3"])
async def test_only_a_small_answer_is_written_on_the_event_loop_and_it_is_the_same(on_the_loop, way, top_k):
    async with serving(ManyClasses()) as client:
        few, many = [
            await client.post("/predict" + top_k, content=WAYS[way](body(count)), headers=BOUNDARY) for count in (4, 5)
        ]
        metrics = (await client.get("/metrics")).text
    assert on_the_loop == [True, False]
    few, many = few.json()["predictions"], many.json()["predictions"]
    assert few[:4] == many[:4]
    assert few[4:] == many[5:] == [{"error": few[4]["error"]}]
    assert [len(one["probabilities"]) for one in many[:5]] == [3 if top_k else MANY] * 5
    assert 'resnet_images_total{outcome="ok"} 9.0' in metrics
    assert 'resnet_images_total{outcome="undecodable-image"} 2.0' in metrics
    assert "resnet_confidence_count 9.0" in metrics


@pytest.fixture
def writing(monkeypatch):
    """Answers wait in `write_answer` until the second event is set; the first one says that one does."""
    begun, go_on, write = threading.Event(), threading.Event(), answers.write_answer

    def wait(*given):
        begun.set()
        assert go_on.wait(10)
        return write(*given)

    monkeypatch.setattr(answers, "write_answer", wait)
    yield begun, go_on
    go_on.set()


@pytest.mark.parametrize("way", WAYS)
async def test_probes_are_answered_while_an_answer_is_written(writing, way):
    begun, go_on = writing
    async with serving(ManyClasses()) as client:
        waiting = asyncio.ensure_future(client.post("/predict", content=WAYS[way](body(5)), headers=BOUNDARY))
        assert await asyncio.to_thread(begun.wait, 10)
        assert (await client.get("/readyz")).status_code == 200
        assert not waiting.done()
        go_on.set()
        assert (await waiting).status_code == 200


ENDS = {"its deadline": (504, "deadline-passed"), "the end of a drain": (503, "not-ready")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
async def test_an_answer_that_is_not_written_in_time_is_an_error_and_its_images_are_counted(monkeypatch, way, end):
    deadlines = []

    def run(_work, deadline):
        deadlines.append(deadline)
        future = asyncio.get_running_loop().create_future()
        if end == "its deadline":
            future.set_exception(DeadlinePassed())
        else:
            future.cancel()
        return SimpleNamespace(future=future, abandon=None)

    content = npy(np.zeros((5, 3, 32, 32), np.uint8))
    headers = {"content-type": "application/x-npy", "x-timeout-ms": "5000"}
    async with serving(ManyClasses()) as client:
        monkeypatch.setattr(client.app.state.service.predictor.decoder, "run", run)
        sent = time.monotonic()
        answer = await client.post("/predict", content=WAYS[way](content), headers=headers)
        assert sent + 5 <= deadlines[0] <= time.monotonic() + 5
        status, code = ENDS[end]
        assert_problem(answer, status, code)
        metrics = (await client.get("/metrics")).text
    assert f'resnet_images_total{{outcome="{code}"}} 5.0' in metrics
    assert 'resnet_images_total{outcome="ok"} 0.0' in metrics


@pytest.mark.parametrize("way", WAYS)
async def test_a_large_answer_that_there_is_no_room_for_is_429_and_the_connection_stays(way):
    """One that is larger than all the room is sent as long as nobody else leaves anything unread."""
    large, small = (npy(np.zeros((count, 3, 32, 32), np.uint8)) for count in (200, 5))
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-npy\r\ncontent-length: %d\r\n\r\n"
    async with serving(ManyClasses(), max_body_bytes=1_000_000, max_buffered_bytes=1_000_000) as client:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(head % len(large) + large)
        sent = await reader.readuntil(b"\r\n\r\n")  # and more is not read
        assert sent.startswith(b"HTTP/1.1 200 ")
        headers = {"content-type": "application/x-npy"}
        answer = await client.post("/predict", content=WAYS[way](small), headers=headers)
        assert_problem(answer, 429, "queue-full")
        assert int(answer.headers["retry-after"]) >= 1
        assert "connection" not in answer.headers
        length = int(re.search(rb"content-length: (\d+)", sent)[1])
        assert length > 5_000_000
        await reader.readexactly(length)
        writer.close()
        metrics = (await client.get("/metrics")).text
    assert 'resnet_requests_total{route="/predict",status="200"} 1.0' in metrics
    assert 'resnet_images_total{outcome="ok"} 200.0' in metrics
    assert 'resnet_images_total{outcome="queue-full"} 5.0' in metrics
    assert 'resnet_requests_total{route="/predict",status="429"} 1.0' in metrics
    assert 'resnet_rejected_total{reason="queue-full"} 1.0' in metrics
    assert 'resnet_rejected_total{reason="unread-response"} 0.0' in metrics


@pytest.mark.parametrize("classes", [1, 10, 64, 65, 1000])
def test_of_equal_probabilities_the_first_is_named_first(classes):
    probabilities = np.random.default_rng(classes).integers(0, 9, classes) / 8
    wanted = sorted(enumerate(probabilities.tolist()), key=lambda one: (-one[1], one[0]))
    for top_k in {1, min(5, classes), classes}:
        assert answers.ranking(probabilities, top_k) == wanted[:top_k]
