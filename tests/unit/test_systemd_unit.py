"""examples/resnet.service is a unit that systemd takes, and leaves the service the time that it needs."""

import configparser
import shutil
import subprocess

import pytest

from app.cli import COMMANDS
from app.processes.supervisor import MARGIN_S
from app.settings import Settings
from tests.conftest import ROOT

UNIT = ROOT / "examples" / "resnet.service"


@pytest.fixture
def unit():
    parser = configparser.RawConfigParser()
    parser.optionxform = str
    parser.read(UNIT)  # raises for a key that is there twice
    return parser


@pytest.fixture
def service(unit):
    return dict(unit["Service"])


def test_it_starts_reloads_and_restarts_the_service(service):
    program, command = service["ExecStart"].split()
    assert program.endswith("/bin/resnet")
    assert command in COMMANDS
    assert service["ExecReload"] == "/bin/kill -HUP $MAINPID"
    assert (service["Type"], service["Restart"]) == ("exec", "on-failure")
    assert int(service["LimitNOFILE"]) > Settings().max_connections


def test_no_failure_is_final(unit, service):
    """By default systemd gives up after five starts within ten seconds."""
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert int(service["RestartSec"]) >= 5


def test_a_drain_of_the_usual_length_is_not_cut_short(service):
    settings = Settings()
    drain_s = settings.drain_delay_s + settings.drain_timeout_s + settings.header_timeout_s + MARGIN_S
    assert int(service["TimeoutStopSec"]) > drain_s


def test_it_has_no_privileges(service):
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"] == ""
    assert {service[name] for name in ("DynamicUser", "NoNewPrivileges", "PrivateTmp")} == {"yes"}
    assert service["ProtectSystem"] == "strict"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd here")
def test_systemd_knows_every_line(tmp_path):
    copy = tmp_path / "resnet.service"
    copy.write_text(UNIT.read_text().replace("/opt/resnet/.venv/bin/resnet", shutil.which("true")))
    told = subprocess.run(["systemd-analyze", "verify", copy], check=False, capture_output=True, text=True)
    assert (told.returncode, [line for line in told.stderr.splitlines() if copy.name in line]) == (0, [])
