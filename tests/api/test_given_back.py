"""What a request holds is given back however it ends: bytes of bodies, places in the queue, its key's one request."""

import asyncio
import hashlib

import pytest

from app.engine_errors import EngineBroken
from tests.api.asking import PICTURE, PNG, assert_problem, post
from tests.api.conftest import serving
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
async def test_a_request_whose_client_leaves_holds_nothing_and_was_not_refused(one_at_a_time, body):
    engine = FakeEngine()
    async with serving(engine, api_keys_file=one_at_a_time) as client:
        engine.hold()
        _, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        writer.write("".join([head, *(f"{name}: {value}\r\n" for name, value in HEADERS.items()), "\r\n"]).encode())
        writer.write(body)
        assert await asyncio.to_thread(engine.entered.wait, 10)
        assert held(client) == (len(body) if body == LARGE else 0, 0, {"me": 1})  # small ones are not counted
        writer.close()
        gone = 'resnet_requests_total{route="/predict",status="499"} 1.0'
        while gone not in (metrics := (await client.get("/metrics")).text):
            pass
        assert 'resnet_images_total{outcome="client-gone"} 1.0' in metrics
        assert 'resnet_rejected_total{reason="client-gone"}' not in metrics
        assert held(client) == (0, 0, {})


async def test_a_request_whose_decoding_ends_with_the_time_of_a_drain_holds_nothing(one_at_a_time, monkeypatch):
    async with serving(api_keys_file=one_at_a_time) as client:
        working = asyncio.get_running_loop().create_future()

        async def decode(*_):
            working.set_result(asyncio.current_task())
            await asyncio.Event().wait()

        monkeypatch.setattr(client.app.state.service.predictor.decoder, "decode_in_threads", decode)
        asked = asyncio.ensure_future(post(client, FOR_THREADS, HEADERS))
        (await working).cancel()
        assert_problem(await asked, 503, "not-ready")
        assert held(client) == (0, 0, {})
