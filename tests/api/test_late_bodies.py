"""Bodies that do not come in time: what their requests are answered, small or large or in chunks."""

import asyncio

import pytest

from tests.api.asking import answer_to_the_end, assert_problem
from tests.api.conftest import serving

pytestmark = pytest.mark.anyio

HALVES = {
    "of a small body": b"content-length: 9\r\n\r\n\x89PNG",
    "of a large body": b"content-length: 1000000\r\n\r\n\x89PNG",
    "of chunks": b"transfer-encoding: chunked\r\n\r\n4\r\n\x89PNG\r\n",
}


HEAD = b"POST /predict HTTP/1.1\r\nhost: x\r\nauthorization: Bearer right\r\ncontent-type: image/png\r\n"


async def send_half(client, half, head=HEAD):
    """Send a request that stops in the middle of its body, with a key, and return the answer."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(head + half)
    return await answer_to_the_end(reader, writer)


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_408(half):
    async with serving(body_timeout_s=0.05, api_key="right") as client:
        answer = await send_half(client, half)
        assert_problem(answer, 408, "body-too-slow")
        assert answer.headers["connection"] == "close"
        assert 'resnet_requests_total{route="/predict",status="408"} 1.0' in (await client.get("/metrics")).text


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
async def test_408_where_a_body_has_as_long_as_a_request(half):
    async with serving(body_timeout_s=0.05, timeout_ms=50, api_key="right") as client:
        assert_problem(await send_half(client, half), 408, "body-too-slow")


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("whose", ["the caller's", "the server's"])
async def test_504_at_the_deadline_while_the_body_is_awaited(monkeypatch, half, whose):
    monkeypatch.setattr("app.middleware.DISCARD_S", 3600)  # nobody waits for more of it
    if whose == "the caller's":
        settings, half = {}, half.replace(b"\r\n", b"\r\nx-timeout-ms: 50\r\n", 1)
    else:
        settings = {"timeout_ms": 50}
    async with serving(api_key="right", **settings) as client:
        answer = await send_half(client, half)
        assert_problem(answer, 504, "deadline-passed")
        assert answer.headers["connection"] == "close"


WRONG = {
    "no key": (b"authorization: Bearer right\r\n", b"", 401, "unauthorized"),
    "a bad parameter": (b"POST /predict ", b"POST /predict?top_k=0 ", 422, "bad-parameter"),
    "a coding": (b"content-type", b"content-encoding: gzip\r\ncontent-type", 415, "unsupported-media-type"),
}


@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES)
@pytest.mark.parametrize("wrong", WRONG)
async def test_what_its_header_is_refused_for_does_not_depend_on_whether_the_body_comes_in_time(
    monkeypatch, half, wrong
):
    monkeypatch.setattr("app.middleware.DISCARD_S", 0.05)
    there, instead, status, code = WRONG[wrong]
    assert there in HEAD
    head = HEAD.replace(there, instead, 1) + b"x-timeout-ms: 1\r\n"
    async with serving(api_key="right") as client:
        assert_problem(await send_half(client, half, head), status, code)
        metrics = (await client.get("/metrics")).text
    assert f'resnet_rejected_total{{reason="{code}"}} 1.0' in metrics
