"""An outage leaves lines in the log: when it begins and ends, and how much is refused meanwhile."""

import asyncio

import pytest

from app.errors import NotFound, QueueFull
from app.lifecycle import Lifecycle
from app.outages import SUMMARY_S, OutageLog
from app.telemetry import Telemetry


class Watched:
    def __init__(self):
        self.lifecycle = Lifecycle()
        self.telemetry = Telemetry()
        self.reason = None
        self.log = OutageLog(self.lifecycle, self.telemetry, lambda: self.reason, "HTTP process 1: ")
        self.now = self.log._summed_up

    def look(self, after_s=0.5):
        self.now += after_s
        self.log.look(self.now)


@pytest.fixture
def watched(caplog):
    watched = Watched()
    watched.lifecycle.mark_ready()
    caplog.set_level("INFO")
    caplog.clear()
    return watched


def lines(caplog):
    return [f"{record.levelname} {record.message}" for record in caplog.records]


def test_a_stall_has_a_line_when_it_begins_and_one_when_it_ends(watched, caplog):
    for reason in (None, "the engine makes no progress", "the engine makes no progress", None, None):
        watched.reason = reason
        watched.look(2)
    assert lines(caplog) == [
        "WARNING HTTP process 1: not ready: the engine makes no progress",
        "INFO HTTP process 1: ready again after 4.0 s",
    ]


def test_another_reason_is_told_and_the_time_is_that_of_both(watched, caplog):
    for reason in (*["the engine makes no progress"] * 2, "the decoder makes no progress", None):
        watched.reason = reason
        watched.look(1)
    assert [line.partition(": ")[2] for line in lines(caplog)] == [
        "not ready: the engine makes no progress",
        "not ready: the decoder makes no progress",
        "ready again after 3.0 s",
    ]


def test_after_a_pause_of_the_process_what_seems_to_have_hung_for_one_look_is_not_told(watched, caplog):
    for reason in ("the engine process makes no progress", None, "the engine process makes no progress", None):
        watched.reason = reason
        watched.look(60)
    assert lines(caplog) == []


def test_who_starts_or_drains_is_not_said_to_be_unready_too(watched, caplog):
    watched.lifecycle.drain()
    watched.reason = "the service is shutting down"
    watched.look()
    assert lines(caplog) == []


def test_refusals_are_summed_up_in_a_line_each_ten_seconds_the_most_frequent_first(watched, caplog):
    watched.telemetry.record_refusal("deadline-passed")
    watched.look(SUMMARY_S / 2)
    assert lines(caplog) == []
    watched.telemetry.record_refusal(QueueFull.code, 1234)
    watched.look(SUMMARY_S / 2)
    watched.look(SUMMARY_S)
    watched.telemetry.record_refusal(QueueFull.code)
    watched.look(SUMMARY_S)
    assert lines(caplog) == [
        "WARNING HTTP process 1: refused in the last 10 s: 1234 queue-full, 1 deadline-passed",
        "WARNING HTTP process 1: refused in the last 10 s: 1 queue-full",
    ]


def test_bad_requests_fill_no_log(watched, caplog):
    watched.telemetry.record_refusal(NotFound.code, 100)
    watched.look(SUMMARY_S)
    assert lines(caplog) == []


@pytest.mark.anyio
async def test_what_was_refused_last_is_told_at_the_end(watched, caplog):
    watched.log.start()
    watched.telemetry.record_refusal("not-ready", 2)
    while not watched.log._task.get_coro().cr_await:
        await asyncio.sleep(0)
    await watched.log.stop()
    assert lines(caplog) == ["WARNING HTTP process 1: refused in the last 1 s: 2 not-ready"]
