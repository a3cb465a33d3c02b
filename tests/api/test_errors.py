"""Every status code of the contract, reached on purpose."""

import asyncio
import math
import threading
import time

import pytest

from app.engine_errors import EngineBroken
from app.http.parameters import Options
from tests.api.asking import PICTURE, PNG, assert_problem, post
from tests.api.conftest import occupied, serving
from tests.bombs import png_without_pixels
from tests.conftest import encode, noise
from tests.fakes import FakeEngine

pytestmark = pytest.mark.anyio

FORM = {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b"", PNG),
        (b"", FORM),
        (b"junk", FORM),
        (b'--b\r\nContent-Disposition: form-data; name="x"\r\n\r\n1\r\n--b--\r\n', FORM),
        (b"", {"content-type": "application/json"}),
        (b'{"images": ', {"content-type": "application/json"}),
        (b'{"image": "x"}', {"content-type": "application/json"}),
    ],
)
async def test_400(client, content, headers):
    assert_problem(await post(client, content, headers), 400, "malformed-request")


async def test_401_and_that_probes_need_no_key():
    async with serving(api_key="right") as client:
        for header in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic right"}):
            answer = await post(client, headers=PNG | header)
            assert_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert_problem(await client.get("/model"), 401, "unauthorized")
        assert (await post(client, headers=PNG | {"authorization": "Bearer right"})).status_code == 200
        for path in ("/livez", "/readyz", "/health", "/metrics", "/docs"):
            assert (await client.get(path)).status_code == 200


async def test_404(client):
    for path in ("/nothing/here", "/model/", "/livez/", "/static"):
        assert_problem(await client.get(path), 404, "not-found")
    assert_problem(await client.post("/predict/", content=b"x", headers=PNG), 404, "not-found")


async def test_405(client):
    assert_problem(await client.get("/predict"), 405, "method-not-allowed")


async def test_504_rather_than_429_once_the_deadline_has_passed(monkeypatch):
    engine = FakeEngine()
    async with serving(engine) as client, occupied(engine, client):
        monkeypatch.setattr("app.http.parameters.Parameters.resolve", lambda *_: Options(time.monotonic() - 1, 10))
        client.app.state.service.predictor.batcher.admit(1, math.inf)
        assert_problem(await post(client), 504, "deadline-passed")


async def test_an_error_for_a_body_that_was_taken_leaves_the_connection_open():
    async with serving(api_key="right") as client:
        assert "connection" not in (await post(client)).headers  # 401


async def test_413_bytes_announced_or_not():
    async def chunks():
        for _ in range(3):
            yield bytes(1000)

    async with serving(max_body_bytes=2048) as client:
        assert_problem(await post(client, bytes(2049)), 413, "body-too-large")
        assert_problem(await post(client, chunks()), 413, "body-too-large")


async def test_413_images(client):
    answer = await client.post("/predict", files=[("file", PICTURE)] * 1000)
    assert_problem(answer, 413, "too-many-images")


@pytest.mark.parametrize(
    "headers", [{"content-type": "text/plain"}, {"content-type": "image/tiff"}, PNG | {"content-encoding": "gzip"}]
)
async def test_415(client, headers):
    assert_problem(await post(client, headers=headers), 415, "unsupported-media-type")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"just text", "undecodable-image"),
        (encode(noise(64, 64), "JPEG")[:600], "undecodable-image"),
        (png_without_pixels(20_000, 20_000), "too-many-pixels"),
    ],
)
async def test_422_image(client, content, code):
    assert_problem(await post(client, content), 422, code)


@pytest.mark.parametrize(
    "content",
    [
        b"\0\0\0\x18ftypheic" + bytes(40),
        b"\0\0\0\x1cftypavif" + bytes(40),
        encode(noise(), "TIFF"),
        b"MM\0*" + bytes(9),
    ],
    ids=["HEIC", "AVIF", "TIFF", "TIFF, big-endian"],
)
async def test_a_picture_of_a_format_that_is_not_read_is_told_what_to_send(client, content):
    answer = await post(client, content)
    assert_problem(answer, 422, "undecodable-image")
    assert answer.json()["detail"] == (
        "HEIC, AVIF and TIFF images (and cameras' raw files) are not read here: send them as JPEG or PNG."
    )
    other = await post(client, b"text")
    assert other.json()["detail"] == "The bytes are not an intact JPEG, PNG, WebP, GIF or BMP image."


async def test_422_base64(client):
    assert_problem(await client.post("/predict", json={"images": ["%%%"]}), 422, "bad-base64")


@pytest.mark.parametrize("top_k", ["0", "11", "-1", "x", ""])
async def test_422_top_k(client, top_k):
    assert_problem(await post(client, path=f"/predict?top_k={top_k}"), 422, "bad-parameter")


@pytest.mark.parametrize("timeout", ["0", "-5", "soon"])
async def test_422_timeout(client, timeout):
    assert_problem(await post(client, headers=PNG | {"x-timeout-ms": timeout}), 422, "bad-parameter")


async def test_429_and_room_again_afterwards():
    engine = FakeEngine()
    settings = {"max_queue_images": 4, "max_images": 4, "batch_sizes": (1, 4)}
    async with serving(engine, **settings) as client:
        async with occupied(engine, client):
            waiting = asyncio.ensure_future(client.post("/predict", files=[("file", PICTURE)] * 3))
            while "resnet_queue_images 3.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
            answer = await client.post("/predict", files=[("file", PICTURE)] * 2)
            assert_problem(answer, 429, "queue-full")
            assert int(answer.headers["retry-after"]) >= 1
        assert (await waiting).status_code == 200
        assert (await client.post("/predict", files=[("file", PICTURE)] * 4)).status_code == 200


async def test_429_before_the_first_batch_for_what_an_engine_cannot_do_in_time_by_its_trial():
    engine = FakeEngine()
    engine.images_per_s = 0.2
    async with serving(engine, batch_sizes=(1, 4), timeout_ms=20_000) as client, occupied(engine, client):
        waiting = asyncio.ensure_future(post(client))
        while "resnet_queue_images 1.0" not in (await client.get("/metrics")).text:
            await asyncio.sleep(0)
        answer = await client.post("/predict", files=[("file", PICTURE)] * 2)  # 20 s from now
        assert_problem(answer, 429, "queue-full")
        assert answer.headers["retry-after"] == "10"
        engine.release()
        assert (await waiting).status_code == 200


async def test_while_the_queue_is_full_predictions_are_refused_before_anything_is_done_for_them():
    engine = FakeEngine()
    settings = {"max_queue_images": 4, "max_images": 4, "batch_sizes": (1, 4), "api_key": "secret"}
    async with serving(engine, **settings) as client:
        client.headers["authorization"] = "Bearer secret"
        async with occupied(engine, client):
            waiting = asyncio.ensure_future(client.post("/predict", files=[("file", PICTURE)] * 4))
            while "resnet_queue_images 4.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
            del client.headers["authorization"]
            answer = await post(client, b"junk", headers={"content-type": "text/plain"}, path="/predict?top_k=0")
            assert_problem(answer, 429, "queue-full")
            assert int(answer.headers["retry-after"]) >= 1
            assert (await client.get("/predict")).status_code == 405
            assert (await client.get("/readyz")).status_code == 200
            metrics = (await client.get("/metrics")).text
            assert 'resnet_requests_total{route="/predict",status="429"} 1.0' in metrics
            assert 'resnet_rejected_total{reason="queue-full"} 1.0' in metrics
        assert (await waiting).status_code == 200
        assert (await post(client)).status_code == 401


@pytest.mark.parametrize("size", [10, 100_000], ids=["answered on its connection", "by the framework"])
async def test_500_hides_the_bug_and_the_next_request_works(caplog, size):
    engine = FakeEngine()
    engine.errors = [RuntimeError("/secret/path at 0x7f00")]
    picture = PICTURE + bytes(max(0, size - len(PICTURE)))
    async with serving(engine) as client:
        answer = await post(client, picture)
        assert_problem(answer, 500, "internal-error")
        assert (await post(client, picture)).status_code == 200
    assert "/secret/path" in caplog.text
    assert f"request {answer.headers['x-request-id']} failed" in caplog.text


@pytest.mark.parametrize(("room", "size"), [("app.routes.fast_predict", 10), ("app.routes.predict", 100_000)])
async def test_500_from_the_http_side_carries_the_request_id_that_the_log_has(client, monkeypatch, caplog, room, size):
    monkeypatch.setattr(f"{room}.split_images", lambda *_: 1 / 0)
    answer = await post(client, bytes(size))
    assert_problem(answer, 500, "internal-error")
    assert answer.headers["x-request-id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text
    assert 'resnet_rejected_total{reason="internal-error"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("count", [1, 30])
async def test_images_that_a_bug_was_in_the_way_of_are_counted(client, monkeypatch, count):
    monkeypatch.setattr("app.imaging._open", lambda *_: 1 / 0)
    picture = encode(noise(60, 60), "BMP")
    answer = await client.post("/predict", files=[("file", picture)] * count)
    assert_problem(answer, 500, "internal-error")
    assert f'resnet_images_total{{outcome="internal-error"}} {count}.0' in (await client.get("/metrics")).text


async def test_503_while_starting():
    release = threading.Event()

    def factory(_settings):
        release.wait(30)
        return FakeEngine()

    async with serving(factory=factory, wait=False) as client:
        try:
            answer = await post(client)
            assert_problem(answer, 503, "not-ready")
            assert int(answer.headers["retry-after"]) >= 1
            for size in (10, 100_000):  # both ways: what can never be answered is not worth another try
                answer = await client.post(
                    "/predict?top_k=x", content=bytes(size), headers={"content-type": "image/png"}
                )
                assert_problem(answer, 422, "bad-parameter")
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/livez")).status_code == 200
        finally:
            release.set()


def with_letters_that_are_none(card):
    card["classes"][0] = "\ud800"


def without_a_runtime(card):
    del card["runtime"]


@pytest.mark.parametrize("spoil", [with_letters_that_are_none, without_a_runtime])
async def test_an_engine_whose_card_is_no_use_ends_the_start(caplog, spoil):
    def factory(_settings):
        engine = FakeEngine()
        engine.card["classes"] = list(engine.card["classes"])
        spoil(engine.card)
        return engine

    async with serving(factory=factory, wait=False) as client:
        service = client.app.state.service
        await service._loading
        assert service.lifecycle.exit_code == 1
        assert_problem(await post(client), 503, "not-ready")
    assert "cannot serve: " in caplog.text


async def test_503_when_the_engine_broke():
    engine = FakeEngine()
    engine.errors = [EngineBroken("device lost")]
    async with serving(engine) as client:
        answer = await post(client)
        assert_problem(answer, 503, "engine-failed")
        assert int(answer.headers["retry-after"]) >= 1
        ready = await client.get("/readyz")
        assert ready.status_code == 503
        assert "device lost" not in ready.text
        answer = await post(client)
        assert_problem(answer, 503, "not-ready")
        assert int(answer.headers["retry-after"]) >= 1


@pytest.mark.parametrize("size", [0, 100_000], ids=["answered on its connection", "by the framework"])
async def test_504_at_the_callers_own_deadline(size):
    engine = FakeEngine()
    async with serving(engine) as client:
        async with occupied(engine, client):
            answer = await post(client, PICTURE + bytes(size), headers=PNG | {"x-timeout-ms": "20"})
            assert_problem(answer, 504, "deadline-passed")
        assert engine.batches == [1]


async def test_504_at_the_servers_deadline_whatever_the_caller_asks():
    engine = FakeEngine()
    async with serving(engine, timeout_ms=20) as client:
        engine.hold()
        assert_problem(await post(client, headers=PNG | {"x-timeout-ms": "60000"}), 504, "deadline-passed")


async def test_429_when_large_bodies_take_too_much_memory_at_once_and_small_ones_are_answered():
    go_on = asyncio.Event()

    async def slow():
        yield bytes(70_000)
        await go_on.wait()
        yield b"x"

    async def in_chunks():
        yield PICTURE

    async with serving(max_body_bytes=71_000, max_buffered_bytes=71_000) as client:
        budget = client.app.state.service.body_budget
        first = asyncio.ensure_future(post(client, slow()))
        while budget.held_bytes < 70_000:
            await asyncio.sleep(0)
        answer = await post(client, bytes(70_000))
        assert_problem(answer, 429, "queue-full")
        assert answer.headers["retry-after"] == "1"
        assert [(await post(client, body)).status_code for body in (PICTURE, in_chunks())] == [200, 200]
        go_on.set()
        assert_problem(await first, 422, "undecodable-image")
        assert budget.held_bytes == 0


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/predict", "GET", "POST"),
        ("/livez", "POST", "GET, HEAD"),
        ("/model", "DELETE", "GET, HEAD"),
        ("/openapi.json", "POST", "GET, HEAD"),
        ("/static/favicon-32x32.png", "POST", "GET, HEAD"),
    ],
)
async def test_405_says_what_is_allowed(client, path, method, allowed):
    answer = await client.request(method, path)
    assert_problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == allowed
    for one in allowed.split(", "):
        assert (await client.request(one, path)).status_code != 405


async def test_an_empty_key_is_no_key():
    with pytest.raises(ValueError, match="must not be empty"):
        async with serving(api_key=""):
            pass
