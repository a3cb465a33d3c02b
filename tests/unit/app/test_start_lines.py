"""What `resnet serve` logs of its settings before there is a service."""

import json
import sys

import pytest

from app.cli import build_parser
from app.settings import Settings, SettingsError


@pytest.fixture(autouse=True)
def _as_before(own_logging):
    """Logging is set up by each start."""


@pytest.fixture
def lines_of_a_start(capsys, monkeypatch):
    """What is logged by a start that ends before there is a service."""

    def refuse(_settings):
        raise SettingsError("that is enough")

    monkeypatch.setattr("app.launch.create_service", refuse)

    def start(*flags):
        parsed = build_parser().parse_args(["serve", "--log-format", "json", *flags])
        assert parsed.run(parsed) == 1
        return [json.loads(line) for line in capsys.readouterr().err.splitlines()][:-1]

    return start


@pytest.mark.parametrize("level", ["debug", "info", "warning", "error"])
def test_one_line_has_every_effective_setting_whatever_the_level(lines_of_a_start, level):
    (line,) = lines_of_a_start("--log-level", level, "--api-key", "secret")
    assert (line["level"], line["logger"]) == ("info", "app.commands.serve")
    assert f" log_level={level}" in line["message"]
    assert all(f" {name}=" in line["message"] for name in Settings.model_fields)
    assert "secret" not in line["message"]


@pytest.mark.parametrize(
    ("flags", "threads", "decode_threads"),
    [
        ((), 12, 8),
        (("--threads", "3", "--decode-threads", "5"), 3, 5),
        pytest.param(("--http-processes", "3"), 12, 6, marks=pytest.mark.skipif(sys.platform != "linux", reason="")),
    ],
    ids=str,
)
def test_numbers_of_threads_are_those_that_there_will_be(monkeypatch, lines_of_a_start, flags, threads, decode_threads):
    monkeypatch.setattr("app.settings.available_cores", lambda: 12)
    words = lines_of_a_start(*flags)[0]["message"].split()
    assert {f"threads={threads}", f"decode_threads={decode_threads}"} <= set(words)


@pytest.mark.parametrize(("timeout_ms", "warned"), [(1500, False), (1501, True)])
def test_a_deadline_beyond_the_drains_end_is_warned_of(lines_of_a_start, timeout_ms, warned):
    lines = lines_of_a_start("--timeout-ms", str(timeout_ms), "--drain-timeout-s", "1.5")
    warnings = [line["message"] for line in lines if line["level"] == "warning"]
    assert [message.partition(" is ")[0] for message in warnings] == [f"timeout_ms={timeout_ms}"] * warned


def test_the_default_deadline_ends_within_the_default_drain(lines_of_a_start):
    assert [line["level"] for line in lines_of_a_start()] == ["info"]
