"""What a request holds is given back however it ends: bytes of bodies, places in the queue, its key's one request."""

import asyncio
import hashlib
import io
import time
import weakref

import numpy as np
import pytest

from app.engine_errors import EngineBroken
from app.http.bodies import split_images
from app.imaging import Decoder
from app.routes.crowd import Crowd
from tests.api.asking import PICTURE, PNG, assert_problem, post
from tests.api.conftest import serving
from tests.batchers import occupied
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

HEADERS = PNG | {"authorization": "Bearer secret"}

FOR_THREADS = encode(noise(100, 100))
LARGE = encode(noise(256, 256))
BODIES = {PICTURE: "fast", LARGE: "framework"}

ENDS = {
    "an answer": (200, PICTURE, {}),
    "an answer of threads": (200, FOR_THREADS, {}),
    "an answer of the framework": (200, LARGE, {}),
    "a bad parameter": (422, PICTURE, {"x-timeout-ms": "soon"}),
    "a coding": (415, PICTURE, {"content-encoding": "gzip"}),
    "another type": (415, PICTURE, {"content-type": "text/plain"}),
    "nothing": (400, b"", {}),
    "no picture": (422, b"junk", {}),
    "no picture for the framework": (422, b"junk" * 20_000, {}),
}


@pytest.fixture
def one_at_a_time(tmp_path):
    """The file of a key that may have one request in flight."""
    file = tmp_path / "keys"
    file.write_text(f"me:{hashlib.sha256(b'secret').hexdigest()}:1\n")
    return file


def held(client):
    service = client.app.state.service
    return service.body_budget.held_bytes, service.queued_images(), service.keys.in_flight._counts


@pytest.mark.parametrize("end", ENDS)
async def test_a_request_that_has_ended_holds_nothing(one_at_a_time, end):
    status, body, headers = ENDS[end]
    async with serving(api_keys_file=one_at_a_time) as client:
        assert (await post(client, body, HEADERS | headers)).status_code == status
        assert held(client) == (0, 0, {})


@pytest.mark.parametrize(("error", "status"), [(ValueError(), 500), (EngineBroken("device lost"), 503)])
async def test_a_request_whose_batch_fails_holds_nothing(one_at_a_time, error, status):
    engine = FakeEngine()
    engine.errors = [error]
    async with serving(engine, api_keys_file=one_at_a_time) as client:
        assert (await post(client, headers=HEADERS)).status_code == status
        assert held(client) == (0, 0, {})


@pytest.mark.parametrize("body", BODIES, ids=BODIES.get)
async def test_a_request_whose_deadline_passes_holds_nothing(one_at_a_time, body):
    engine = FakeEngine()
    async with serving(engine, api_keys_file=one_at_a_time) as client:
        engine.hold()
        late = await post(client, body, HEADERS | {"x-timeout-ms": "50"})
        assert_problem(late, 504, "deadline-passed")
        assert held(client) == (0, 0, {})


@pytest.mark.parametrize("body", BODIES, ids=BODIES.get)
async def test_a_request_whose_deadline_passes_as_it_is_queued_is_answered_and_holds_nothing(
    one_at_a_time, monkeypatch, body
):
    """The engine is busy, and takes what waits at once, but for what is late."""
    engine = FakeEngine()
    decode = Decoder.decode_here

    def decode_slowly(decoder, entries):
        time.sleep(0.06)  # holding up the loop is what it is about
        return decode(decoder, entries)

    async with serving(engine, api_keys_file=one_at_a_time) as client:
        batcher = client.app.state.service.require_predictor().batcher
        monkeypatch.setattr(type(batcher._policy), "least_to_hand_over", 1)
        first = await occupied(engine, batcher)
        monkeypatch.setattr(Decoder, "decode_here", decode_slowly)
        late = await post(client, body, HEADERS | {"x-timeout-ms": "50"})
        assert_problem(late, 504, "deadline-passed")
        engine.release()
        await first
        assert held(client) == (0, 0, {})


@pytest.mark.parametrize("body", BODIES, ids=BODIES.get)
async def test_a_request_whose_client_leaves_holds_nothing_and_was_not_refused(one_at_a_time, body):
    engine = FakeEngine()
    async with serving(engine, api_keys_file=one_at_a_time) as client:
        engine.hold()
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        writer.write("".join([head, *(f"{name}: {value}\r\n" for name, value in HEADERS.items()), "\r\n"]).encode())
        writer.write(body)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        assert held(client) == (0, 0, {"me": 1})
        writer.close()
        gone = 'resnet_requests_total{route="/predict",status="499"} 1.0'
        while gone not in (metrics := (await client.get("/metrics")).text):
            pass
        assert 'resnet_images_total{outcome="client-gone"} 1.0' in metrics
        assert 'resnet_rejected_total{reason="client-gone"}' not in metrics
        assert held(client) == (0, 0, {})


async def test_a_request_whose_decoding_ends_with_the_time_of_a_drain_holds_nothing(one_at_a_time, held_decoding):
    async with serving(api_keys_file=one_at_a_time) as client:
        asked = asyncio.ensure_future(post(client, FOR_THREADS, HEADERS))
        assert await asyncio.to_thread(held_decoding.begun.wait, 10)
        (work,) = [one for one in asyncio.all_tasks() if "FastRequest._await" in repr(one.get_coro())]
        work.cancel()
        assert_problem(await asked, 503, "not-ready")
        assert held(client) == (0, 0, {})
        held_decoding.go_on.set()


async def test_a_large_body_is_held_until_it_is_decoded_and_no_longer(one_at_a_time, held_decoding):
    engine = FakeEngine()
    async with serving(engine, api_keys_file=one_at_a_time) as client:
        engine.hold()
        asked = asyncio.ensure_future(post(client, LARGE, HEADERS))
        assert await asyncio.to_thread(held_decoding.begun.wait, 10)
        assert held(client) == (len(LARGE), 1, {"me": 1})
        held_decoding.go_on.set()
        assert await asyncio.to_thread(engine.entered.wait, 10)
        assert held(client) == (0, 0, {"me": 1})
        engine.release()
        assert (await asked).status_code == 200


async def test_arrays_that_come_ready_are_not_held_either_while_they_wait_for_the_engine(monkeypatch):
    engine, file, arrays = FakeEngine(), io.BytesIO(), []
    np.save(file, np.zeros((32, 3, 32, 32), np.uint8))

    def split(*given):
        entries = split_images(*given)
        arrays.extend(weakref.ref(one) for one in entries)
        return entries

    monkeypatch.setattr("app.routes.predict.split_images", split)
    async with serving(engine) as client:
        engine.hold()
        asked = asyncio.ensure_future(post(client, file.getvalue(), {"content-type": "application/x-npy"}))
        assert await asyncio.to_thread(engine.entered.wait, 10)
        assert held(client)[0] == 0
        assert [array() for array in arrays] == [None] * 32
        engine.release()
        assert (await asked).status_code == 200


async def test_a_client_that_leaves_while_a_crowd_is_begun_costs_no_decoding(one_at_a_time, monkeypatch):
    waiting = []
    monkeypatch.setattr(Crowd, "begin", lambda _crowd, start, *arguments: waiting.append((start, arguments)))
    monkeypatch.setattr(Decoder, "decode_here", lambda *_: pytest.fail("it was decoded"))
    async with serving(api_keys_file=one_at_a_time) as client:
        asking = asyncio.ensure_future(post(client, headers=HEADERS))
        while not waiting:
            await asyncio.sleep(0)
        asking.cancel()
        ((start, arguments),) = waiting
        while not start.__self__._connection.gone:
            await asyncio.sleep(0)
        start(*arguments)
        assert held(client) == (0, 0, {})
        assert 'resnet_requests_total{route="/predict",status="499"} 1.0' in (await client.get("/metrics")).text
