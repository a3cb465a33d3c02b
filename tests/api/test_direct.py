"""The short way of /predict and the framework's own: the same answers to the same requests."""

import httpx
import pytest

from tests.api.conftest import serving
from tests.conftest import encode, noise

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}

REQUESTS = {
    "a picture": ("", PNG),
    "one class": ("?top_k=1", PNG),
    "as pydantic reads integers": ("?top_k=%2B3", PNG),
    "the last of two": ("?top_k=x&top_k=2", PNG),
    "a deadline": ("", PNG | {"x-timeout-ms": "5000"}),
    "no integer": ("?top_k=some", PNG),
    "nothing": ("?top_k=", PNG),
    "a fraction": ("?top_k=1.5", PNG),
    "too small": ("?top_k=0", PNG),
    "too large": ("?top_k=11", PNG),
    "two things wrong": ("?top_k=-1", PNG | {"x-timeout-ms": "soon"}),
    "another type": ("", {"content-type": "text/plain"}),
}
KEYS = {"no key": {}, "a wrong key": {"authorization": "Bearer wrong"}, "the key": {"authorization": "Bearer secret"}}


async def both_ways(client, query, headers):
    """Ask once as clients do, and once past the shortcut."""
    app = client._transport.app
    short = await client.post("/predict" + query, content=encode(noise()), headers=headers)
    path, app.short_path = app.short_path, None
    try:
        long = await client.post("/predict" + query, content=encode(noise()), headers=headers)
    finally:
        app.short_path = path
    return short, long


def content(answer: httpx.Response):
    body = answer.json()
    body.pop("request_id", None)
    return answer.status_code, answer.headers["content-type"], body


@pytest.mark.parametrize("name", REQUESTS)
async def test_both_ways_give_the_same_answer(name):
    async with serving() as client:
        short, long = await both_ways(client, *REQUESTS[name])
        assert content(short) == content(long)
        metrics = (await client.get("/metrics")).text
    assert f'resnet_requests_total{{route="/predict",status="{short.status_code}"}} 2.0' in metrics


@pytest.mark.parametrize("name", KEYS)
@pytest.mark.parametrize("query", ["", "?top_k=0"])
async def test_both_ways_ask_for_the_key_first(name, query):
    async with serving(api_key="secret") as client:
        short, long = await both_ways(client, query, PNG | KEYS[name])
        assert content(short) == content(long)


async def test_other_methods_and_paths_are_the_frameworks():
    async with serving() as client:
        assert (await client.get("/predict")).status_code == 405
        assert (await client.post("/predictions")).status_code == 404
