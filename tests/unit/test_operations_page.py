"""docs/operations.md and the examples beside it say what is so: every metric, real settings, times that suffice."""

import re

import pytest
from prometheus_client import Counter

from app.processes.supervisor import MARGIN_S
from app.settings import Settings
from app.telemetry import Telemetry
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "operations.md").read_text()
MANIFEST = (ROOT / "examples" / "kubernetes.yaml").read_text()
ALERTS = (ROOT / "examples" / "alerts.yml").read_text()


def metrics():
    """Name with labels, kind and documentation of each metric of the service's own."""
    ours = [metric for metric in vars(Telemetry()).values() if hasattr(metric, "_labelnames")]
    for metric in ours:
        name = metric._name + ("_total" if isinstance(metric, Counter) else "")
        yield name, ",".join(metric._labelnames), metric._type, metric._documentation


def metrics_table():
    rows = ["| metric | kind | what it is |", "|---|---|---|"]
    for name, labels, kind, documentation in metrics():
        rows.append(f"| `{name}{'{' + labels + '}' if labels else ''}` | {kind} | {documentation} |")
    return "\n".join(rows)


def test_the_table_of_metrics_is_complete_and_right():
    assert metrics_table() in PAGE


def test_alerts_ask_for_metrics_that_there_are():
    known = {name for name, *_ in metrics()}
    asked = set(re.findall(r"\b(resnet_\w+?)(?:_bucket|_sum|_count)?\b(?=[{\[ ]|$)", ALERTS, re.M))
    assert asked
    assert asked <= known


def test_the_manifest_sets_settings_that_there_are(monkeypatch):
    given = dict(re.findall(r'name: RESNET_(\w+), value: "([^"]+)"', MANIFEST))
    for name, value in given.items():
        assert name.lower() in Settings.model_fields
        monkeypatch.setenv(f"RESNET_{name}", value)
    settings = Settings()
    assert settings.admin_port == int(re.search(r"name: admin, containerPort: (\d+)", MANIFEST)[1])
    grace_s = int(re.search(r"terminationGracePeriodSeconds: (\d+)", MANIFEST)[1])
    assert grace_s > settings.drain_delay_s + settings.drain_timeout_s + settings.header_timeout_s + MARGIN_S


@pytest.mark.parametrize("text", [MANIFEST, ALERTS])
def test_the_examples_are_yaml(text):
    yaml = pytest.importorskip("yaml", reason="nothing else here needs PyYAML")
    assert all(isinstance(one, dict) for one in yaml.safe_load_all(text))
