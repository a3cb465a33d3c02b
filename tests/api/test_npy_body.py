"""The raw form of a request: an array that needs no decoding."""

import asyncio

import numpy as np
import pytest

from tests.api.asking import assert_problem
from tests.api.conftest import occupied, serving
from tests.conftest import encode, noise
from tests.fakes import FakeEngine
from tests.mutations import damaged_start
from tests.npy_files import npy

pytestmark = pytest.mark.anyio

NPY = {"content-type": "application/x-npy"}
IMAGES = np.stack([np.asarray(noise(seed=seed)).transpose(2, 0, 1) for seed in range(3)])


async def post(client, content, **headers):
    return await client.post("/predict", content=content, headers=NPY | headers)


async def test_an_array_gets_the_answers_of_the_same_images_as_files(client):
    files = await client.post("/predict", files=[("file", encode(noise(seed=seed))) for seed in range(3)])
    array = await post(client, npy(IMAGES))
    assert array.status_code == 200
    assert array.json() == files.json()
    alone = await post(client, npy(IMAGES[1]))
    assert alone.json()["predictions"] == files.json()["predictions"][1:2]


async def test_a_large_array_is_answered_whole_and_in_order():
    engine = FakeEngine()
    async with serving(engine, batch_sizes=(1, 8)) as client:
        many = (await post(client, npy(IMAGES[np.arange(50) % 3]))).json()["predictions"]
        few = (await post(client, npy(IMAGES))).json()["predictions"]
    assert many == [few[n % 3] for n in range(50)]
    assert max(engine.batches) == 8


async def test_the_images_have_the_size_that_the_network_takes():
    async with serving(FakeEngine(size=64)) as client:
        assert (await post(client, npy(np.zeros((2, 3, 64, 64), np.uint8)))).status_code == 200
        assert_problem(await post(client, npy(IMAGES)), 422, "unusable-array")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "malformed-request"),
        (npy(IMAGES)[:-1], 400, "malformed-request"),
        (npy(IMAGES) + b"x", 400, "malformed-request"),
        (npy(IMAGES[:0]), 400, "malformed-request"),
        (npy(IMAGES.astype(np.float32)), 422, "unusable-array"),
        (npy(np.asfortranarray(IMAGES)), 422, "unusable-array"),
        (npy(IMAGES.transpose(0, 2, 3, 1).copy()), 422, "unusable-array"),
        (npy(np.full((1, 3, 32, 32), None, object), allow_pickle=True), 422, "unusable-array"),
        (npy(np.zeros((257, 3, 32, 32), np.uint8)), 413, "too-many-images"),
    ],
)
async def test_bad_arrays_get_their_status(client, body, status, code):
    assert_problem(await post(client, body), status, code)


async def test_a_compressed_array_is_not_supported(client):
    assert_problem(await post(client, npy(IMAGES), **{"content-encoding": "gzip"}), 415, "unsupported-media-type")


async def test_a_full_queue_refuses_an_array_as_a_whole():
    engine = FakeEngine()
    async with serving(engine, max_queue_images=4, max_images=4, batch_sizes=(1, 2)) as client:
        async with occupied(engine, client):
            waiting = asyncio.ensure_future(post(client, npy(IMAGES)))
            while "resnet_queue_images 3.0" not in (await client.get("/metrics")).text:
                await asyncio.sleep(0)
            assert_problem(await post(client, npy(IMAGES[:2])), 429, "queue-full")
        assert (await waiting).status_code == 200


async def test_mutated_arrays_are_answered_or_refused(client):
    rng = np.random.default_rng(2)
    good = npy(IMAGES)
    statuses = set()
    for _ in range(200):
        body = damaged_start(rng, good)
        statuses.add((await post(client, bytes(body))).status_code)
    assert statuses == {200, 400, 422}


async def test_the_form_is_in_the_openapi_document(client):
    operation = (await client.get("/openapi.json")).json()["paths"]["/predict"]["post"]
    assert "application/x-npy" in operation["requestBody"]["content"]
