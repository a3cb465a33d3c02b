"""Errors as a connection writes them."""

import json
from types import SimpleNamespace

import pytest

from app.errors import BodyTooSlow, QueueFull, Unauthorized
from app.http.problems import SECURITY_HEADERS, date_line, problem_answers

EVERY_ANSWERS = {b"content-type": b"application/problem+json", b"x-request-id": b"one", **dict(SECURITY_HEADERS)}


@pytest.mark.parametrize(
    ("error", "own"),
    [
        (QueueFull(retry_after_s=7), {b"retry-after": b"7"}),
        (Unauthorized(), {b"www-authenticate": b"Bearer"}),
        (BodyTooSlow(), {}),
    ],
    ids=lambda given: getattr(given, "code", ""),
)
@pytest.mark.parametrize(("close", "end"), [(False, {}), (True, {b"connection": b"close"})])
def test_a_whole_answer_has_what_its_error_asks_for_and_says_whether_it_is_the_last(error, own, close, end):
    head, _, body = problem_answers(error, close=close)("one").partition(b"\r\n\r\n")
    status, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    assert status.startswith(b"HTTP/1.1 %d " % error.status)
    assert fields.pop(b"date").endswith(b" GMT")
    assert fields == EVERY_ANSWERS | own | end | {b"content-length": b"%d" % len(body)}
    assert json.loads(body) == error.problem() | {"request_id": "one"}


def test_the_date_is_made_anew_with_every_second_that_has_begun(monkeypatch):
    clock = iter([784111777.0, 784111777.9, 784111778.0])
    monkeypatch.setattr("app.http.problems.time", SimpleNamespace(time=lambda: next(clock)))
    assert [date_line() for _ in range(3)] == [
        b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        b"date: Sun, 06 Nov 1994 08:49:38 GMT\r\n",
    ]
