"""How `resnet serve` says that there will be no service."""

import json
import socket

import pytest

from app.cli import build_parser
from benchmarks.ports import free_port
from tests.conftest import ROOT


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


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--tls-cert", "missing", "--tls-key", "tests/tls/localhost.key"], "tls_cert missing: No such file"),
        (["--api-keys-file", "missing"], "api_keys_file missing: No such file"),
        (["--api-keys-file", "tests/tls/localhost.crt"], "localhost.crt, line 1: not name:sha256-hex"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_that_tells_nothing_of_its_content(monkeypatch, flags, reason):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as refused:
        serve("--port", str(free_port()), *flags)
    said = str(refused.value.code)
    assert said.startswith("resnet: error: ")
    assert reason in said
    assert "\n" not in said
    assert "BEGIN CERTIFICATE" not in said


def test_else_it_is_a_plain_line():
    with pytest.raises(SystemExit, match=r"^resnet: error: port: "):
        serve("--port", "99999")
