import asyncio
import base64
import gc
import math
import re

import numpy as np
import pytest

from app.errors import ServiceError
from tests.api.asking import assert_problem
from tests.api.conftest import occupied, serving
from tests.conftest import encode, noise
from tests.fakes import CLASSES, FakeEngine, probabilities_of
from tests.garbage import no_collection

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}
PICTURES = [encode(noise(seed=seed)) for seed in range(3)]


def expected(seed):
    return probabilities_of(np.asarray(noise(seed=seed)).transpose(2, 0, 1)[None])[0]


def assert_prediction(prediction, seed, top_k=10):
    probabilities = expected(seed)
    order = np.argsort(-probabilities, kind="stable")
    ranked = prediction["probabilities"]
    assert len(ranked) == top_k
    assert [one["index"] for one in ranked] == order[:top_k].tolist()
    for one in ranked:
        assert one["label"] == CLASSES[one["index"]]
        assert one["probability"] == pytest.approx(probabilities[one["index"]], abs=1e-6)
    assert {key: prediction[key] for key in ("label", "index", "probability")} == ranked[0]


async def test_one_image_as_the_body(client):
    answer = await client.post("/predict", content=PICTURES[0], headers=PNG)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["model"] == {"name": "fake", "version": "0123456789ab"}
    assert len(body["predictions"]) == 1
    assert_prediction(body["predictions"][0], 0)


async def test_several_images_as_multipart(client):
    answer = await client.post("/predict", files=[("file", picture) for picture in PICTURES])
    assert answer.status_code == 200
    for seed, prediction in zip(range(3), answer.json()["predictions"], strict=True):
        assert_prediction(prediction, seed)


async def test_several_images_as_json(client):
    images = [base64.b64encode(picture).decode() for picture in PICTURES]
    answer = await client.post("/predict", json={"images": images})
    assert answer.status_code == 200
    for seed, prediction in zip(range(3), answer.json()["predictions"], strict=True):
        assert_prediction(prediction, seed)


@pytest.mark.parametrize("top_k", [1, 3, 10])
async def test_top_k_limits_the_classes(client, top_k):
    answer = await client.post(f"/predict?top_k={top_k}", content=PICTURES[1], headers=PNG)
    assert_prediction(answer.json()["predictions"][0], 1, top_k)


async def test_a_bad_image_does_not_spoil_the_others(client):
    images = [base64.b64encode(PICTURES[0]).decode(), "%%%", base64.b64encode(b"text").decode()]
    answer = await client.post("/predict", json={"images": images})
    assert answer.status_code == 200
    good, bad_base64, undecodable = answer.json()["predictions"]
    assert_prediction(good, 0)
    assert bad_base64["error"]["status"] == 422
    assert bad_base64["error"]["type"].endswith("bad-base64")
    assert undecodable["error"]["type"].endswith("undecodable-image")


async def test_a_request_of_only_bad_images_says_so_of_each(client):
    answer = await client.post("/predict", files=[("file", b"junk"), ("file", b"")])
    assert answer.status_code == 200
    assert [one["error"]["status"] for one in answer.json()["predictions"]] == [422, 422]


class Overflowing(FakeEngine):
    """Has no finite answer for pictures of noise(seed=1)."""

    def run(self, images):
        answer = super().run(images)
        unknown = np.asarray(noise(seed=1)).transpose(2, 0, 1)
        answer[(images == unknown).all(axis=(1, 2, 3)), 3] = math.inf
        return answer


@pytest.mark.parametrize("filler", [0, 100_000])  # the fast path, and the framework's
async def test_an_image_that_the_engine_has_no_answer_for_does_not_spoil_the_others(caplog, filler):
    async with serving(Overflowing()) as client:
        files = [("file", picture + bytes(filler)) for picture in PICTURES]
        answer = await client.post("/predict", files=files)
        assert answer.status_code == 200
        first, unknown, last = answer.json()["predictions"]
        assert_prediction(first, 0)
        assert_prediction(last, 2)
        assert (unknown["error"]["status"], unknown["error"]["type"][-14:]) == (500, "internal-error")
        assert f"request {answer.headers['x-request-id']}: no finite answer for 1 of its images" in caplog.text
        metrics = (await client.get("/metrics")).text
        assert 'resnet_images_total{outcome="ok"} 2.0' in metrics
        assert 'resnet_images_total{outcome="internal-error"} 1.0' in metrics
        alone = await client.post("/predict", content=PICTURES[1] + bytes(filler), headers=PNG)
        assert alone.status_code == 500


def errors_held():
    return {id(one) for one in gc.get_objects() if issubclass(type(one), ServiceError)}


@pytest.mark.parametrize("body", [b"no picture", PICTURES[0][:-50], encode(noise(256, 256))[:-50]])
async def test_a_refused_body_is_let_go_without_a_garbage_collection(client, body):
    """An error's stack holds the body."""
    with no_collection():
        before = errors_held()
        for _ in range(3):
            assert (await client.post("/predict", content=body, headers=PNG)).status_code == 422
        for _ in range(1000):  # threads of the decoder may not have let go of theirs yet
            if errors_held() <= before:
                break
            await asyncio.sleep(0.01)
        assert errors_held() <= before


async def test_a_large_request_is_answered_whole_and_in_order():
    engine = FakeEngine()
    async with serving(engine, batch_sizes=(1, 8)) as client:
        answer = await client.post("/predict", files=[("file", PICTURES[n % 3]) for n in range(50)])
    for n, prediction in zip(range(50), answer.json()["predictions"], strict=True):
        assert_prediction(prediction, n % 3)
    assert max(engine.batches) == 8
    assert sum(engine.batches) == 50


async def test_requests_at_once_share_batches():
    engine = FakeEngine()
    async with serving(engine) as client:
        async with occupied(engine, client):
            waiting = [
                asyncio.ensure_future(client.post("/predict", content=PICTURES[n % 3], headers=PNG)) for n in range(12)
            ]
            while "resnet_queue_images 12.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
        answers = await asyncio.gather(*waiting)
    assert engine.batches == [1, 12]
    for n, answer in enumerate(answers):
        assert_prediction(answer.json()["predictions"][0], n % 3)


@pytest.mark.parametrize("size", [0, 100_000], ids=["answered on its connection", "by the framework"])
async def test_an_answer_keeps_the_callers_request_id(client, size):
    picture = PICTURES[0] + bytes(size)
    for given in ("abc-123", "abc-124"):
        answer = await client.post("/predict", content=picture, headers=PNG | {"x-request-id": given})
        assert (answer.status_code, answer.headers["x-request-id"]) == (200, given)


async def test_a_sane_request_id_is_kept_and_another_replaced(client):
    answer = await client.get("/livez", headers={"x-request-id": "abc-123"})
    assert answer.headers["x-request-id"] == "abc-123"
    for insane in ("a b", "x" * 200, '"><script>'):
        answer = await client.get("/livez", headers={"x-request-id": insane})
        assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-request-id"])


async def test_503_for_a_picture_that_memory_is_missing_for_alone_or_among_others(client, monkeypatch):
    def full(*_given):
        raise MemoryError

    monkeypatch.setattr("model.pictures.codec.evaluation_transform", full)
    jpeg = encode(noise(), "JPEG")
    answer = await client.post("/predict", content=jpeg, headers={"content-type": "image/jpeg"})
    assert_problem(answer, 503, "engine-failed")
    assert int(answer.headers["retry-after"]) >= 1
    answer = await client.post("/predict", files=[("file", jpeg), ("file", PICTURES[0])])
    bad, good = answer.json()["predictions"]
    assert (answer.status_code, bad["error"]["status"]) == (200, 503)
    assert_prediction(good, 0)
