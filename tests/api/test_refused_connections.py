"""What a connection refuses by itself: answer, metrics and log say the same of it."""

import asyncio
import logging

import pytest

from tests.api.asking import answer_to_the_end, assert_problem
from tests.api.conftest import serving

pytestmark = pytest.mark.anyio

CHUNKED = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n"
NO_CHUNK = b"no length\r\n"
IDS = {"the caller's id": (b"x-request-id: mine\r\n", "mine"), "an id of ours": (b"", None)}


async def refused(client, *pieces):
    """Send pieces of a request, each once the service has had the time to see what was before; return the answer."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    for piece in pieces:
        writer.write(piece)
        await client.get("/livez")
    return await answer_to_the_end(reader, writer)


@pytest.mark.parametrize(("line", "request_id"), IDS.values(), ids=IDS)
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_body_that_breaks_off_is_a_400_everywhere_and_keeps_its_id(client, caplog, line, request_id, at_once):
    caplog.set_level(logging.DEBUG, "app.request_end")
    head = CHUNKED + line + b"\r\n"
    answer = await refused(client, head + NO_CHUNK) if at_once else await refused(client, head, NO_CHUNK)
    assert_problem(answer, 400, "malformed-request")
    if request_id is not None:
        assert answer.headers["x-request-id"] == request_id
    metrics = ""
    while 'resnet_requests_total{route="/predict"' not in metrics:  # the application may end after the answer
        metrics = (await client.get("/metrics")).text
    assert 'resnet_requests_total{route="/predict",status="400"} 1.0' in metrics
    assert 'resnet_rejected_total{reason="malformed-request"} 1.0' in metrics
    assert 'status="499"' not in metrics
    (logged,) = [one for one in caplog.records if getattr(one, "route", None) == "/predict"]
    assert (logged.status, logged.request_id) == (400, answer.headers["x-request-id"])


async def test_a_body_that_breaks_off_behind_another_request_keeps_its_id(client):
    first = b"GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(first + CHUNKED + b"x-request-id: mine\r\n\r\n" + NO_CHUNK)
    raw = await reader.read()
    writer.close()
    assert raw.count(b"HTTP/1.1 ") == 2
    assert b"x-request-id: mine\r\n" in raw.partition(b"HTTP/1.1 400 ")[2]


@pytest.mark.parametrize(
    "rest",
    [
        b"\r\n",  # no host
        b"host: x\r\nhost: y\r\n\r\n",
        b"host: x\r\nno header\r\n\r\n",
        b"x: y\r\n" * 300,
        b"host: x\r\ntransfer-encoding: chunked\r\n\r\n" + NO_CHUNK,
    ],
)
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_refused_header_keeps_its_id_and_head_gets_no_body(client, method, rest):
    answer = await refused(client, method.encode() + b" /livez HTTP/1.1\r\nx-request-id: mine\r\n" + rest)
    assert (answer.status_code, answer.headers["x-request-id"]) == (400, "mine")
    assert (answer.content == b"") == (method == "HEAD")


async def test_a_late_header_keeps_its_id_and_head_gets_no_body():
    async with serving(header_timeout_s=0.05) as client:
        answer = await refused(client, b"HEAD /livez HTTP/1.1\r\nx-request-id: mine\r\nx: ")
    assert (answer.status_code, answer.headers["x-request-id"], answer.content) == (408, "mine", b"")


async def test_what_is_no_http_behind_a_head_gets_a_body(client):
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
    writer.write(b"HEAD /livez HTTP/1.1\r\nhost: x\r\nx-request-id: mine\r\n\r\n" + b"\x16\x03\x01")
    refusal = (await reader.read()).partition(b"HTTP/1.1 400 ")[2]
    writer.close()
    assert b"malformed-request" in refusal
    assert b"mine" not in refusal
