"""Requests too large for the event loop: they are the framework's, and nothing else waits for them."""

import asyncio
import gc
import threading

import httpx
import pytest

from app.decode_pool import Work
from app.errors import QueueFull
from app.http.bodies import read_body, split_images
from app.routes import predict
from tests.api.asking import answer_to_the_end, assert_problem
from tests.api.conftest import no_room, occupied, serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine
from tests.garbage import no_collection

pytestmark = pytest.mark.anyio

SMALL, LARGE = encode(noise()), encode(noise(256, 256))
HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: %d\r\n"


@pytest.mark.parametrize(
    ("form", "picture", "in_a_thread"),
    [("multipart", SMALL, False), ("multipart", LARGE, True), ("file", SMALL, False), ("file", LARGE, False)],
)
async def test_only_a_large_form_is_taken_apart_in_a_thread(form, picture, in_a_thread, monkeypatch):
    threads = []

    def noted(*given):
        threads.append(threading.current_thread())
        return split_images(*given)

    request = httpx.Request("POST", "http://x", files={"file": picture}) if form == "multipart" else None
    body = request.read() if request else picture

    async def in_chunks():  # which even a small body goes to the framework for
        yield body

    monkeypatch.setattr(predict, "split_images", noted)
    async with serving() as client:
        headers = {"content-type": request.headers["content-type"] if request else "image/png"}
        answer = await client.post("/predict", content=in_chunks(), headers=headers)
    assert answer.status_code == 200
    assert [thread is not threading.current_thread() for thread in threads] == [in_a_thread]


@pytest.mark.parametrize("picture", [SMALL, LARGE], ids=["small", "large"])
async def test_an_answer_and_its_image_are_measured_on_either_way(picture):
    async with serving() as client:
        answer = await client.post("/predict", content=picture, headers={"content-type": "image/png"})
        lines = (await client.get("/metrics")).text.splitlines()
    assert answer.status_code == 200
    assert "resnet_decode_seconds_count 1.0" in lines
    assert "resnet_queue_seconds_count 1.0" in lines
    assert 'resnet_images_total{outcome="ok"} 1.0' in lines
    assert f'resnet_predictions_total{{label="{answer.json()["predictions"][0]["label"]}"}} 1.0' in lines
    assert "resnet_confidence_count 1.0" in lines


async def test_a_large_body_is_not_even_asked_for_while_there_is_no_room():
    async with no_room() as (client, _):
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(HEAD % 1_000_000 + b"expect: 100-continue\r\n\r\n")
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.1 429 ")
        writer.close()


@pytest.mark.parametrize(
    ("length", "headers", "status", "code"),
    [
        (2_000_001, {}, 413, "body-too-large"),
        (1_000_000, {"content-type": "text/plain"}, 415, "unsupported-media-type"),
        (1_000_000, {"content-encoding": "gzip"}, 415, "unsupported-media-type"),
    ],
)
async def test_what_is_never_accepted_is_not_told_to_come_back(monkeypatch, length, headers, status, code):
    """Also while the threads that decode have no room for more, and without a byte of its body."""
    async with serving(max_body_bytes=2_000_000) as client:

        def no_room(_size, _deadline):
            raise QueueFull(retry_after_s=1)

        monkeypatch.setattr(client.app.state.service.predictor.decoder, "require_room", no_room)
        head = {"content-type": "image/png"} | headers
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n" % length)
        writer.write("".join([*(f"{name}: {value}\r\n" for name, value in head.items()), "\r\n"]).encode())
        assert_problem(await answer_to_the_end(reader, writer), status, code)


async def test_503_for_a_picture_that_is_still_decoded_when_the_drains_time_is_over(monkeypatch):
    """The connection's work is cancelled then."""
    decoding, go_on = threading.Event(), threading.Event()

    def slow(*_given):
        decoding.set()
        assert go_on.wait(30)

    monkeypatch.setattr("app.imaging._open", slow)
    async with serving() as client:
        picture = encode(noise(60, 60), "BMP") * 2  # not large, and not tiny
        waiting = asyncio.ensure_future(client.post("/predict", content=picture, headers={"content-type": "image/bmp"}))
        assert await asyncio.to_thread(decoding.wait, 10)
        (work,) = [one for one in asyncio.all_tasks() if "FastRequest._await" in repr(one.get_coro())]
        work.cancel()
        answer = await waiting
        go_on.set()
        assert_problem(answer, 503, "not-ready")
        assert int(answer.headers["retry-after"]) >= 1
        assert 'resnet_images_total{outcome="not-ready"} 1.0' in (await client.get("/metrics")).text


@pytest.fixture
def gone(monkeypatch):
    """The lengths of the bodies and files that were let go."""
    gone = []

    class Bytes(bytes):
        def __del__(self):
            gone.append(len(self))

    async def read(*given, **named):
        return Bytes(await read_body(*given, **named))

    def split(*given):
        return [Bytes(file) for file in split_images(*given)]

    monkeypatch.setattr(predict, "read_body", read)
    monkeypatch.setattr(predict, "split_images", split)
    return gone


async def test_a_large_body_and_its_files_are_let_go_before_the_wait_for_a_batch(gone):
    engine = FakeEngine()
    async with serving(engine) as client, occupied(engine, client):
        waiting = asyncio.ensure_future(client.post("/predict", files=[("file", LARGE), ("file", LARGE)]))
        async with asyncio.timeout(10):
            while len(gone) < 3:
                await asyncio.sleep(0)
        assert not waiting.done()
        engine.release()
        assert (await waiting).status_code == 200


async def test_what_threads_were_at_for_a_small_body_is_let_go_without_a_garbage_collection(monkeypatch):
    monkeypatch.setattr("app.imaging.PIXELS_TOGETHER", 1)
    files = [("file", encode(noise(90, 90)))] * 2
    async with serving(max_pixels=90 * 90) as client:
        with no_collection():
            assert_problem(await client.post("/predict", files=files), 422, "too-many-pixels")
            async with asyncio.timeout(10):  # a thread may still be at the other file
                while any(type(one) is Work for one in gc.get_objects()):
                    await client.get("/livez")


@pytest.mark.parametrize("kind", ["no form", "no picture", "too many pixels"])
async def test_a_large_body_that_is_refused_is_let_go_without_a_garbage_collection(kind, gone, monkeypatch):
    monkeypatch.setattr("app.imaging.PIXELS_TOGETHER", 1)
    many = httpx.Request("POST", "http://x", files=[("file", LARGE)] * 2)
    content, type_ = many.read(), many.headers["content-type"]
    body, headers = {
        "no form": (content[:-100], {"content-type": type_}),
        "no picture": (b"junk" * 50_000, {"content-type": "image/png"}),
        "too many pixels": (content, {"content-type": type_}),
    }[kind]
    async with serving(max_pixels=256 * 256) as client:
        with no_collection():
            answer = await client.post("/predict", content=body, headers=headers)
            assert answer.status_code == (400 if kind == "no form" else 422)
            async with asyncio.timeout(10):  # a thread may still be at the other file
                while len(gone) < {"no form": 1, "no picture": 2, "too many pixels": 3}[kind]:
                    await client.get("/livez")
            assert max(gone) == len(body)
