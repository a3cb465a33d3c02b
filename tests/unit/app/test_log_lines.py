import json
import logging
import time

from app.logs import JsonFormatter, set_up_logging


def record(message, error=None):
    trace = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("app.batcher", logging.ERROR, __file__, 1, message, ("of 4",), trace)


def test_a_line_of_json_says_when_how_grave_who_and_what():
    line = record("a batch %s failed")
    line.created, line.msecs = 784111777.25, 250.0
    assert json.loads(JsonFormatter().format(line)) == {
        "time": "1994-11-06T08:49:37.250Z",
        "level": "error",
        "logger": "app.batcher",
        "message": "a batch of 4 failed",
    }


def test_a_line_of_json_has_its_time_in_utc_with_three_digits_of_milliseconds(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        line = record("a batch %s failed")
        line.created, line.msecs = 784111777.007, 7.0
        assert json.loads(JsonFormatter().format(line))["time"] == "1994-11-06T08:49:37.007Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_line_of_json_has_what_it_says_of_a_request_as_members():
    line = record("request %s failed")
    line.request_id, line.status, line.secret = "abc", 500, "x"
    written = json.loads(JsonFormatter().format(line))
    assert (written["request_id"], written["status"]) == ("abc", 500)
    assert "secret" not in written


def test_a_line_of_json_has_the_trace_of_an_exception():
    try:
        raise ValueError("the shapes\ndo not match")
    except ValueError as error:
        line = JsonFormatter().format(record("a batch %s failed", error))
    assert "\n" not in line
    assert "in test_a_line_of_json_has_the_trace_of_an_exception" in json.loads(line)["exception"]
    assert json.loads(line)["exception"].endswith("ValueError: the shapes\ndo not match")


def test_libraries_say_less_than_the_service_itself(own_logging):
    set_up_logging("debug", "text")
    assert logging.getLogger("app").isEnabledFor(logging.DEBUG)
    levels = {name: logging.getLogger(name).level for name in ("asyncio", "httpx")}
    assert levels == {"asyncio": logging.INFO, "httpx": logging.WARNING}
