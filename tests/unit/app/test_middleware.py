"""What surrounds each request, when its time is over or somebody erred: one answer, and never uvicorn's own."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from app.lifecycle import State
from app.middleware import RequestContext

pytestmark = pytest.mark.anyio


class Telemetry:
    def __init__(self):
        self.statuses = []
        self.reasons = []

    def record_refusal(self, reason):
        self.reasons.append(reason)

    def record_answer(self, _route, status, _seconds):
        self.statuses.append(status)


async def too_large(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 413, "headers": []})
    await send({"type": "http.response.body", "body": b"too large"})


async def breaks(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("in the middle")


async def waits(_scope, receive, _send):
    await receive()


class Conversation:
    """A request whose body's end never comes, and what is sent to its client."""

    def __init__(self, app, *headers):
        self.sent = []
        self.asked = asyncio.Event()
        self.telemetry = Telemetry()
        service = SimpleNamespace(lifecycle=SimpleNamespace(state=State.READY), telemetry=self.telemetry)
        head = [(b"content-length", b"100"), *headers]
        scope = {"type": "http", "method": "POST", "headers": head}
        self.task = asyncio.ensure_future(RequestContext(app, service)(scope, self.receive, self.send))

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


async def test_of_two_ids_the_first_one_counts():
    conversation = Conversation(too_large, (b"x-request-id", b"first"), (b"x-request-id", b"second"))
    await conversation.asked.wait()
    conversation.task.cancel()
    await conversation.task
    assert dict(conversation.sent[0]["headers"])[b"x-request-id"] == b"first"
