"""What HTTP processes are told of the settings: the key, and how to log."""

import json

import pytest

from tests.two_processes import one_each, predict

pytestmark = pytest.mark.e2e


def test_the_key_of_the_settings_reaches_both(start, examples):
    service = start(http_processes=2, api_key="a secret")
    for key, status in [("a secret", 200), ("another", 401), ("**********", 401)]:  # as settings show a key
        with one_each(service, authorization=f"Bearer {key}") as clients:
            assert [predict(client, examples["cat"]).status_code for client in clients] == [status] * 2
    assert "a secret" not in service.log
    assert service.stop() == 0


def test_every_line_of_every_process_is_an_object_where_logs_are_json(start, examples):
    # With `device` given, the engine is tuned by itself: its lines are looked at, too.
    service = start(http_processes=2, log_format="json", log_level="debug", device="cpu")
    with one_each(service) as clients:
        for client in clients:
            assert predict(client, examples["cat"], **{"x-request-id": "asked"}).status_code == 200
            assert predict(client, b"no picture").status_code == 422
    assert service.stop() == 0
    lines = [json.loads(line) for line in service.log.splitlines()]
    assert sum(line.get("request_id") == "asked" for line in lines) == 2
    assert sum("draining" in line["message"] for line in lines) == 1
