"""docs/operations.md and the examples beside it say what is so: every metric, real settings, times that suffice."""

import re
import subprocess

import pytest

from app.backends.batch_sizes import LADDER_STEPS, ladder
from app.errors import TOO_MANY_CONNECTIONS, UNREAD_RESPONSE, QueueFull
from app.processes.supervisor import MARGIN_S
from app.routes.predict import PATH
from app.settings import Settings
from app.telemetry import REASONS
from tests.conftest import ROOT
from tests.promql import metrics, unknown

PAGE = (ROOT / "docs" / "operations.md").read_text()
MANIFEST = (ROOT / "examples" / "kubernetes.yaml").read_text()
POLICY = (ROOT / "examples" / "networkpolicy.yaml").read_text()
INGRESS = (ROOT / "examples" / "ingress.yaml").read_text()
AUTOSCALING = (ROOT / "examples" / "autoscaling.yaml").read_text()
ALERTS = (ROOT / "examples" / "alerts.yml").read_text()


def metrics_table():
    rows = ["| metric | kind | what it is |", "|---|---|---|"]
    for name, labels, kind, documentation in metrics():
        rows.append(f"| `{name}{'{' + labels + '}' if labels else ''}` | {kind} | {documentation} |")
    return "\n".join(rows)


def test_the_table_of_metrics_is_complete_and_right():
    assert metrics_table() in PAGE


def test_alerts_ask_for_metrics_and_labels_that_there_are():
    queries = re.findall(r"expr: (.+)", ALERTS)
    assert len(queries) > 5
    recorded = re.findall(r"record: (\S+)", ALERTS)
    assert [unknown(query, recorded) for query in queries] == [[]] * len(queries)
    assert set(re.findall(r'route="([^"]*)"', ALERTS)) == {PATH}
    assert alerted_reasons() <= set(REASONS)


def alerted_reasons():
    return {reason for reasons in re.findall(r'reason=~?"([^"]*)"', ALERTS) for reason in reasons.split("|")}


def test_what_closes_connections_is_alerted_to():
    """It is no response, so that no other rule counts it."""
    assert {TOO_MANY_CONNECTIONS, UNREAD_RESPONSE, QueueFull.code} <= alerted_reasons()


def test_that_none_is_ready_is_said_sooner_than_that_one_is_not():
    """Of a job without an instance that was ready before, which is one that starts, it is not said."""
    rules = dict(re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - |\Z)", ALERTS, re.S))
    none, one = (rules[name] for name in ("ResnetNoneReady", "ResnetNotReady"))
    assert "expr: sum by (job) (resnet_ready) == 0 and sum by (job) (max_over_time(resnet_ready[1h])) > 0" in none
    minutes = [int(re.search(r"for: (\d+)m", rule)[1]) for rule in (none, one)]
    assert minutes == sorted(set(minutes))
    longest = int(re.search(r"on GPUs (\d+)m", one)[1])
    assert longest < 60  # when the first of them ends, the second has begun


def test_probes_do_not_thin_out_errors():
    """Each scrape and each probe is a request, too."""
    counted = re.findall(r"resnet_requests_total(\S*)\[", ALERTS)
    assert len(counted) == 4
    assert all(f'route="{PATH}"' in selected for selected in counted)


def test_alerts_fire_when_nothing_answers_any_more():
    """What is scraped no more has no samples that could be compared with 0."""
    assert 'up{job="resnet"} == 0' in ALERTS
    assert "absent(resnet_ready)" in ALERTS


def test_what_alerts_read_is_recorded_before_them():
    """The rules of a group are computed in order."""
    recorded = re.findall(r"record: (\S+)", ALERTS)
    read = {name: ALERTS.index(f"expr: {name}") for name in re.findall(r"expr: (resnet:\S+)", ALERTS)}
    assert set(read) == set(recorded)
    assert all(ALERTS.index(f"record: {name}") < place for name, place in read.items())


def test_the_manifest_sets_settings_that_there_are(monkeypatch):
    given = dict(re.findall(r'name: RESNET_(\w+), value: "([^"]+)"', MANIFEST))
    for name, value in given.items():
        assert name.lower() in Settings.model_fields
        monkeypatch.setenv(f"RESNET_{name}", value)
    settings = Settings()
    assert settings.batch_sizes == ladder(settings.batch_sizes[-1], LADDER_STEPS["cpu"])
    assert settings.admin_port == int(re.search(r"name: admin, containerPort: (\d+)", MANIFEST)[1])
    grace_s = int(re.search(r"terminationGracePeriodSeconds: (\d+)", MANIFEST)[1])
    assert grace_s > settings.drain_delay_s + settings.drain_timeout_s + MARGIN_S


def test_one_late_answer_takes_no_pod_out_and_a_drain_outlasts_the_probe():
    probe = re.search(r"readinessProbe:\n((?: {12}.*\n)+)", MANIFEST)[1]
    period_s, timeout_s, failures = (
        int(re.search(rf"{name}: (\d+)", probe)[1]) for name in ("periodSeconds", "timeoutSeconds", "failureThreshold")
    )
    assert timeout_s > 1
    assert failures > 1
    drain_delay_s = float(re.search(r'RESNET_DRAIN_DELAY_S, value: "(\d+)"', MANIFEST)[1])
    assert drain_delay_s > failures * max(period_s, timeout_s) + period_s


def test_the_network_policy_is_about_the_pods_and_ports_of_the_manifest():
    assert re.search(r"podSelector:\n\s+matchLabels: (.*)", POLICY)[1] == re.search(r"matchLabels: (.*)", MANIFEST)[1]
    ports = re.findall(r"\{name: (\w+), containerPort:", MANIFEST)
    assert re.findall(r"\{protocol: TCP, port: (\w+)\}", POLICY) == ports
    rules = re.findall(r"metadata\.name: ([\w-]+)\}(?:\n.*?)*?port: (\w+)\}", POLICY)
    assert rules == [("ingress-nginx", "http"), ("monitoring", "admin")]


def test_the_ingress_leads_to_the_service_of_the_manifest_with_limits_that_fit():
    name, port = re.search(r"service: \{name: (\w+), port: \{name: (\w+)\}\}", INGRESS).groups()
    service = MANIFEST.partition("kind: Service\n")[2].partition("---")[0]
    assert f"\n  name: {name}\n" in service
    assert f"{{name: {port}, port:" in service
    assert re.search(r"path: (\S+)", INGRESS)[1] == PATH
    given = dict(re.findall(r'nginx\.ingress\.kubernetes\.io/([\w-]+): "?([^"#\n]*[^"#\s])', INGRESS))
    assert int(given["proxy-body-size"].removesuffix("m")) * 2**20 == Settings().max_body_bytes
    assert int(given["proxy-read-timeout"]) > Settings().timeout_ms / 1000
    assert f"proxy_next_upstream {given['proxy-next-upstream']};" in PAGE


def test_the_ingress_with_tls_is_yaml_for_the_same_name():
    yaml = pytest.importorskip("yaml", reason="nothing else here needs PyYAML")
    spec = yaml.safe_load(re.sub(r"^  #(?! \w)", "  ", INGRESS, flags=re.M))["spec"]
    assert spec["tls"][0]["hosts"] == [rule["host"] for rule in spec["rules"]]


@pytest.mark.parametrize("text", [MANIFEST, ALERTS, POLICY, INGRESS, AUTOSCALING])
def test_the_examples_are_yaml(text):
    yaml = pytest.importorskip("yaml", reason="nothing else here needs PyYAML")
    assert all(isinstance(one, dict) for one in yaml.safe_load_all(text))


def test_the_alerts_as_a_prometheusrule_are_the_alerts():
    yaml = pytest.importorskip("yaml", reason="nothing else here needs PyYAML")
    command = re.search(r"\n(\(printf .*?\)) \| kubectl apply -f -\n", PAGE, re.S)[1]
    made = subprocess.run(["sh", "-c", command], check=True, cwd=ROOT, stdout=subprocess.PIPE).stdout
    rule = yaml.safe_load(made)
    assert (rule["kind"], rule["spec"]) == ("PrometheusRule", yaml.safe_load(ALERTS))


def test_queries_for_a_dashboard_ask_for_metrics_and_labels_that_there_are():
    table = PAGE.partition("| panel | query |")[2].partition("\n\n")[0]
    queries = re.findall(r"`(.*?)`", table)
    assert len(queries) >= 8
    assert [unknown(query) for query in queries] == [[]] * len(queries)


def test_each_alert_says_how_grave_it_is():
    alerts = re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - |\Z)", ALERTS, re.S)
    assert len(alerts) > 5
    for name, rule in alerts:
        assert re.search(r"labels: \{severity: (critical|warning)\}", rule), name


def test_the_autoscaler_scales_the_deployment_of_the_manifest():
    kind, name = re.search(r"scaleTargetRef: \{apiVersion: apps/v1, kind: (\w+), name: (\w+)\}", AUTOSCALING).groups()
    assert re.search(rf"kind: {kind}\nmetadata:\n  name: {name}\n", MANIFEST)
    assert re.search(r"seriesQuery: (\w+)\{", AUTOSCALING)[1] in {name for name, *_ in metrics()}
