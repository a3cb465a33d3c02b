import asyncio
import builtins
import errno
import io
import os
import pickle

import pytest

from app.engine import load_engine
from app.lifecycle import State
from app.release import release
from app.telemetry import REASONS
from tests.api.conftest import occupied, serving
from tests.conftest import encode, noise, warnings_of
from tests.fakes import FakeEngine
from tests.process import WEIGHTS

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}

NAMES = [
    'resnet_requests_total{route="/predict",status="200"}',
    'resnet_request_seconds_bucket{le="+Inf",route="/predict"}',
    'resnet_images_total{outcome="ok"}',
    "resnet_decode_seconds_count",
    "resnet_queue_seconds_count",
    "resnet_inference_seconds_count",
    "resnet_batch_images_bucket",
    "resnet_queue_images",
    "resnet_engine_images_per_second 0.0",
    'resnet_rejected_total{reason="not-found"}',
    'resnet_predictions_total{label="class0"}',
    "resnet_confidence_bucket",
    'resnet_model_info{architecture="fake",device="cpu",dtype="float32",name="fake",version="0123456789ab"} 1.0',
    "resnet_ready 1.0",
    f'resnet_build_info{{revision="unknown",version="{release()}"}} 1.0',
    "resnet_tasks ",
    "process_resident_memory_bytes",
]


async def test_metrics_have_the_names_of_the_contract(client):
    await client.post("/predict", content=encode(noise()), headers=PNG)
    await client.get("/nothing/1")
    await client.get("/nothing/2")
    text = (await client.get("/metrics")).text
    for name in NAMES:
        assert name in text
    assert 'resnet_requests_total{route="unmatched",status="404"} 2.0' in text
    assert "/nothing" not in text


async def test_the_log_says_what_was_loaded_and_by_what_it_is_computed(caplog):
    caplog.set_level("INFO")
    async with serving():
        assert "loaded fake version 0123456789ab on cpu in float32 by fake (" in caplog.text


@pytest.mark.parametrize(
    ("method", "path", "route", "status"),
    [
        ("GET", "/openapi.json", "/openapi.json", 200),
        ("POST", "/openapi.json", "/openapi.json", 405),
        ("GET", "/docs", "/docs", 200),
        ("GET", "/static/favicon-32x32.png", "/static", 200),
        ("GET", "/static/none", "/static", 404),
        ("HEAD", "/livez", "/livez", 200),
        ("GET", "/predict", "/predict", 405),
        ("GET", "/openapi.jsonl", "unmatched", 404),
    ],
)
async def test_an_answer_is_counted_under_its_routes_template(client, method, path, route, status):
    assert (await client.request(method, path)).status_code == status
    text = (await client.get("/metrics")).text
    assert f'resnet_requests_total{{route="{route}",status="{status}"}} 1.0' in text


async def test_the_engines_pace_is_that_of_its_trial_until_it_has_had_a_full_batch():
    engine = FakeEngine()
    engine.images_per_s = 0.125
    async with serving(engine, batch_sizes=(1, 2)) as client:

        async def pace():
            lines = (await client.get("/metrics")).text.splitlines()
            (line,) = [one for one in lines if one.startswith("resnet_engine_images_per_second ")]
            return float(line.partition(" ")[2])

        assert await pace() == 0.125
        files = [("file", encode(noise()))] * 2
        assert (await client.post("/predict", files=files)).status_code == 200
        assert await pace() > 0.125


async def test_without_a_certificate_there_is_no_metric_of_its_end(client):
    assert "resnet_tls_" not in (await client.get("/metrics")).text


async def test_metrics_have_the_values_of_what_happened():
    engine = FakeEngine()
    async with serving(engine) as client:
        for _ in range(2):
            await client.post("/predict", content=encode(noise()), headers=PNG)
        text = (await client.get("/metrics")).text
        lines = [line for line in text.splitlines() if not line.startswith("#")]
        values = {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}
        for name in ("decode_seconds", "inference_seconds", "confidence", "queue_seconds", "batch_images"):
            assert values[f"resnet_{name}_count"] == 2, name
            assert values[f"resnet_{name}_sum"] > 0, name
        assert 0.1 <= values["resnet_confidence_sum"] / 2 <= 1
        assert values["resnet_batch_images_sum"] == 2
        service = client.app.state.service
        assert values["resnet_ready"] == 1
        service.lifecycle.drain()
        assert "resnet_ready 0.0" in (await client.get("/metrics")).text


async def test_every_reason_to_refuse_is_counted_from_zero_on(client):
    """Who watches for an increase would not see the first of a kind."""
    text = (await client.get("/metrics")).text
    for reason in REASONS:
        assert f'resnet_rejected_total{{reason="{reason}"}} 0.0' in text
    assert "client-gone" not in text


async def test_images_are_counted_by_what_became_of_them(client):
    await client.post("/predict", files=[("file", encode(noise())), ("file", b"junk")])
    await client.post("/predict", content=b"junk", headers=PNG)
    text = (await client.get("/metrics")).text
    assert 'resnet_images_total{outcome="ok"} 1.0' in text
    assert 'resnet_images_total{outcome="undecodable-image"} 2.0' in text


async def test_probes_and_metrics_answer_while_the_engine_is_busy():
    engine = FakeEngine()
    async with serving(engine) as client, occupied(engine, client):
        for path in ("/livez", "/readyz", "/health", "/metrics", "/model"):
            assert (await client.get(path)).status_code == 200


async def test_probes_open_nothing(client, monkeypatch):
    """So that no slow disk makes them late, and no limit of open files makes them fail."""
    opened = []

    def refuse(*given, **_):
        opened.append(given)
        raise OSError(errno.EMFILE, "opened by a probe")

    with monkeypatch.context() as patch:
        for module, name in ((builtins, "open"), (io, "open"), (os, "open"), (os, "listdir"), (os, "scandir")):
            patch.setattr(module, name, refuse)
        answers = {path: await client.get(path) for path in ("/livez", "/readyz", "/health")}
        assert opened == []
        assert (await client.get("/metrics")).status_code == 200
        assert opened  # in /proc
    assert {path: answer.status_code for path, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert (answers["/livez"].text, answers["/readyz"].text) == ("alive\n", "ready\n")
    assert answers["/health"].json()["ready"] is True


async def test_health_shows_the_state(client):
    body = (await client.get("/health")).json()
    assert body["status"] == "ready"
    assert body["ready"] is True
    assert body["model"] == {"name": "fake", "version": "0123456789ab"}
    assert body["device"] == "cpu"
    assert body["queue_images"] == 0
    assert body["uptime_s"] >= 0


async def test_model_shows_the_checkpoint(client):
    body = (await client.get("/model")).json()
    card = FakeEngine().card
    for key in (
        "architecture",
        "classes",
        "input_size",
        "mean",
        "std",
        "sha256",
        "measured",
        "temperature",
        "calibration_exponent",
    ):
        assert body[key] == card[key]


async def test_draining_is_unready_but_still_serves():
    async with serving() as client:
        client.app.state.service.lifecycle.drain()
        assert (await client.get("/readyz")).status_code == 503
        health = await client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, State.DRAINING)
        answer = await client.post("/predict", content=encode(noise()), headers=PNG)
        assert answer.status_code == 200
        assert answer.headers["connection"] == "close"


async def test_an_engine_that_makes_no_progress_fails_both_probes():
    engine = FakeEngine()
    async with serving(engine, stall_timeout_s=0.001) as client, occupied(engine, client):
        while (await client.get("/livez")).status_code == 200:
            pass
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        answer = await client.get("/health")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert (answer.json()["status"], answer.json()["ready"]) == ("stalled", False)


async def test_what_makes_no_progress_until_the_deadline_is_not_ready_but_alive(monkeypatch):
    engine = FakeEngine()
    async with serving(engine, timeout_ms=300) as client:
        engine.hold()
        while not engine.entered.is_set():  # on a busy machine one may be late before it gets there
            answer = await client.post("/predict", content=encode(noise()), headers=PNG)
            assert answer.status_code == 504
        assert (await client.get("/readyz")).status_code == 200  # a batch may take longer than so short a deadline
        monkeypatch.setattr("app.service.MIN_STALL_S", 0.001)
        while (await client.get("/readyz")).status_code == 200:
            pass
        assert (await client.get("/livez")).status_code == 200
        engine.release()


async def test_what_hangs_for_long_ends_the_service_and_what_waits_gets_503(monkeypatch):
    monkeypatch.setattr("app.watchers.WATCH_S", 0.01)
    engine = FakeEngine()
    async with serving(engine, stall_timeout_s=0.01, stall_exit_s=0.02) as client:
        service = client.app.state.service
        failed = asyncio.Event()
        service.lifecycle.on_failure = failed.set
        engine.hold()
        answer = await client.post("/predict", content=encode(noise()), headers=PNG)
        assert (answer.status_code, answer.json()["type"]) == (503, "urn:resnet:problem:engine-failed")
        await asyncio.wait_for(failed.wait(), 10)
        assert service.lifecycle.exit_code == 1
        assert (await client.get("/readyz")).text == "the engine makes no progress\n"
        engine.release()


async def test_who_is_not_answered_before_the_end_is_told_of(monkeypatch, caplog):
    monkeypatch.setattr("app.batcher.CLOSE_S", 0.01)
    engine = FakeEngine()
    async with serving(engine) as client, occupied(engine, client) as first:
        await client.app.state.service.stop()
        assert (await first).status_code == 503
        (line,) = [line for line in warnings_of(caplog) if line.startswith("refused in the last")]
        assert line.endswith(": 1 engine-failed")


async def test_what_seems_to_have_hung_in_one_look_goes_on(monkeypatch):
    """As everything does after the whole process was stopped for a while."""
    looks = []
    monkeypatch.setattr("app.watchers.WATCH_S", 0.001)
    async with serving(FakeEngine(), stall_timeout_s=0.001, stall_exit_s=0.001) as client:
        service = client.app.state.service
        monkeypatch.setattr(service, "stalled", lambda: looks.append(1) or ("the engine" if len(looks) % 2 else None))
        while len(looks) < 20:
            await asyncio.sleep(0.001)
        assert service.lifecycle.state is State.READY
        monkeypatch.setattr(service, "stalled", lambda: None)


@pytest.mark.parametrize("seconds", [0, 60])
async def test_the_watch_can_be_left_out(seconds):
    async with serving(FakeEngine(), stall_exit_s=seconds):
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert ("watch" in names) is bool(seconds)


async def test_a_failure_to_load_is_one_line_and_never_ready(caplog):
    def factory(_settings):
        raise OSError("no such device")

    async with serving(factory=factory) as client:
        assert (await client.get("/readyz")).status_code == 503
        assert "no such device" not in (await client.get("/health")).text
    assert "cannot serve" in caplog.text


def flip_a_byte(path):
    data = bytearray(WEIGHTS.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_a_byte, "does not match its SHA-256 digest"),
        (lambda path: path.write_bytes(pickle.dumps({})), "looks like a pickle"),
        (lambda path: None, "No such file"),
    ],
)
async def test_a_checkpoint_that_cannot_be_trusted_ends_the_start_in_one_line(caplog, tmp_path, spoil, reason):
    path = tmp_path / "bad.safetensors"
    spoil(path)
    async with serving(factory=load_engine, weights=path) as client:
        assert client.app.state.service.lifecycle.exit_code == 1
        assert (await client.get("/readyz")).status_code == 503
    (error,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert error.message.startswith("cannot serve: ")
    assert reason in error.message
    assert error.exc_info is None
