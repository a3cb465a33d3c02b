"""How `resnet serve` says that there will be no service."""

import json
import socket

import pytest

from app.cli import build_parser


@pytest.fixture(autouse=True)
def _as_before(own_logging):
    """Logging is set up by each start."""


def serve(*arguments):
    parsed = build_parser().parse_args(["serve", *arguments])
    return parsed.run(parsed)


def test_settings_that_cannot_be_used_are_one_line_of_json_where_the_log_is(capsys, monkeypatch):
    monkeypatch.setenv("RESNET_LOG_FORMAT", "JSON")
    assert serve("--port", "99999") == 1
    line = json.loads(capsys.readouterr().err)
    assert line["level"] == "error"
    assert line["message"].startswith("resnet: error: port: ")


def test_a_port_that_is_taken_is_one_as_well(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert serve("--port", str(port), "--log-format", "json", "--log-level", "error") == 1
    line = json.loads(capsys.readouterr().err.splitlines()[-1])
    assert line["message"].startswith(f"resnet: error: port {port} ")


def test_else_it_is_a_plain_line():
    with pytest.raises(SystemExit, match=r"^resnet: error: port: "):
        serve("--port", "99999")
