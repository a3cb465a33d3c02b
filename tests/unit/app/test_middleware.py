"""What surrounds each request, when its time is over or somebody erred: one answer, and never uvicorn's own."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from app.lifecycle import State
from app.middleware import RequestContext
from tests.other_server import under_another_server

pytestmark = pytest.mark.anyio


class Telemetry:
    def __init__(self):
        self.statuses = []
        self.reasons = []

    def record_refusal(self, reason):
        self.reasons.append(reason)

    def record_answer(self, _route, status, _seconds):
        self.statuses.append(status)


def refuses(status):
    async def app(_scope, _receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"no"})

    return app


too_large = refuses(413)


async def breaks(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("in the middle")


async def breaks_later(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"a part", "more_body": True})
    raise RuntimeError("in the middle")


async def waits(_scope, receive, _send):
    await receive()


async def leaves(_scope, _receive, _send):
    """End without an answer: nobody is left to get one."""


class Conversation:
    """A request whose body's end never comes, and what is sent to its client."""

    def __init__(self, app, *headers):
        self.sent = []
        self.asked = asyncio.Event()
        self.telemetry = Telemetry()
        service = SimpleNamespace(lifecycle=SimpleNamespace(state=State.READY), telemetry=self.telemetry)
        head = [(b"content-length", b"100"), *headers]
        scope = {"type": "http", "method": "POST", "headers": head}
        surrounded = under_another_server(RequestContext(app, service))
        self.task = asyncio.ensure_future(surrounded(scope, self.receive, self.send))

    async def receive(self):
        self.asked.set()
        await asyncio.Event().wait()

    async def send(self, message):
        self.sent.append(message)


@pytest.mark.parametrize("app", [too_large, waits])
async def test_at_the_end_of_a_drain_who_has_no_answer_yet_gets_503(app):
    """Also who waits for it until the rest of a refused body is read."""
    conversation = Conversation(app)
    await conversation.asked.wait()
    conversation.task.cancel()
    await conversation.task
    start, body = conversation.sent
    assert start["status"] == 503
    assert json.loads(body["body"])["type"] == "urn:resnet:problem:not-ready"
    assert dict(start["headers"])[b"connection"] == b"close"
    assert int(dict(start["headers"])[b"retry-after"]) >= 1
    assert conversation.telemetry.statuses == [503]
    assert conversation.telemetry.reasons == ["not-ready"]


async def test_an_answer_that_breaks_off_before_anything_was_sent_is_500(monkeypatch):
    monkeypatch.setattr("app.middleware.DISCARD_S", 0.0)
    conversation = Conversation(breaks)
    await conversation.task
    assert [message.get("status") for message in conversation.sent] == [500, None]
    assert json.loads(conversation.sent[1]["body"])["type"] == "urn:resnet:problem:internal-error"


async def test_an_answer_that_breaks_off_later_gets_no_second_one(monkeypatch):
    monkeypatch.setattr("app.middleware.DISCARD_S", 0.0)
    conversation = Conversation(breaks_later)
    await conversation.task
    assert [message.get("body") for message in conversation.sent] == [None, b"a part"]
    assert (conversation.telemetry.statuses, conversation.telemetry.reasons) == ([200], [])


class Flood(Conversation):
    """A request whose body goes on and on."""

    pieces = 0

    async def receive(self):
        self.pieces += 1
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"four", "more_body": True}


async def test_of_a_refused_body_no_more_is_read_than_its_client_may_need(monkeypatch):
    monkeypatch.setattr("app.middleware.DISCARD_BYTES", 10)
    flood = Flood(too_large)
    await flood.task
    assert flood.pieces == 3
    assert dict(flood.sent[0]["headers"])[b"connection"] == b"close"


async def test_of_two_ids_the_first_one_counts():
    conversation = Conversation(too_large, (b"x-request-id", b"first"), (b"x-request-id", b"second"))
    await conversation.asked.wait()
    conversation.task.cancel()
    await conversation.task
    assert dict(conversation.sent[0]["headers"])[b"x-request-id"] == b"first"


async def test_a_request_that_ends_without_an_answer_is_that_of_a_client_that_left():
    conversation = Conversation(leaves)
    await conversation.task
    assert conversation.sent == conversation.telemetry.reasons == []
    assert conversation.telemetry.statuses == [499]


@pytest.mark.parametrize("status", [408, 504])
async def test_the_rest_of_a_body_that_has_come_too_slowly_is_not_awaited(status):
    conversation = Conversation(refuses(status))
    await conversation.task
    assert not conversation.asked.is_set()
    assert conversation.telemetry.statuses == [status]
    assert dict(conversation.sent[0]["headers"])[b"connection"] == b"close"
