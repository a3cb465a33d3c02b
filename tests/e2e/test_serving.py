"""The shipped checkpoint in the real process: right classes, one answer however it is asked, many at once."""

import asyncio
import base64
import json
import subprocess
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest

from benchmarks.load import exchange, post
from tests.commands import resnet
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}


def probabilities_of(prediction):
    by_index = sorted(prediction["probabilities"], key=lambda one: one["index"])
    return np.array([one["probability"] for one in by_index])


def ask(service, picture):
    answer = httpx.post(f"{service.url}/predict", content=picture, headers=PNG, timeout=120)
    assert answer.status_code == 200, answer.text
    return answer.json()["predictions"][0]


def test_the_examples_get_their_class(service, examples):
    found = {name: ask(service, picture)["label"] for name, picture in examples.items()}
    assert found == {name: name for name in examples}


def test_the_three_body_forms_agree(service, examples):
    pictures = list(examples.values())
    single = [ask(service, picture) for picture in pictures]
    multipart = httpx.post(f"{service.url}/predict", files=[("file", one) for one in pictures], timeout=120)
    images = [base64.b64encode(one).decode() for one in pictures]
    as_json = httpx.post(f"{service.url}/predict", json={"images": images}, timeout=120)
    for answer in (multipart, as_json):
        for one, other in zip(single, answer.json()["predictions"], strict=True):
            assert one["label"] == other["label"]
            assert np.abs(probabilities_of(one) - probabilities_of(other)).max() <= 1e-3


def test_64_clients_at_once_are_batched_and_get_the_answers_of_one_alone(service, examples):
    pictures = list(examples.values())
    single = [probabilities_of(ask(service, picture)) for picture in pictures]
    batches_before = service.metric("resnet_batch_images_count")
    images_before = service.metric("resnet_batch_images_sum")

    async def client_of(number):
        reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
        answers = []
        for turn in range(3):
            which = (number + turn) % len(pictures)
            body = await exchange(reader, writer, post("/predict", pictures[which], PNG))
            answers.append((which, probabilities_of(json.loads(body)["predictions"][0])))
        writer.close()
        return answers

    async def everyone():
        return await asyncio.gather(*(client_of(number) for number in range(64)))

    for answers in asyncio.run(everyone()):
        for which, probabilities in answers:
            assert np.abs(probabilities - single[which]).max() <= 1e-3
            assert probabilities.argmax() == single[which].argmax()
    images = service.metric("resnet_batch_images_sum") - images_before
    batches = service.metric("resnet_batch_images_count") - batches_before
    assert images == 192
    assert batches < images  # how many share one depends on how fast clients and engine are
    assert service.metric("resnet_queue_seconds_count") >= 192


def test_the_model_says_what_it_is(service):
    body = service.get("/model").json()
    assert body["name"] == "resnet18-cifar10"
    assert body["calibrated"] is True
    by_split = {one["split"]: one for one in body["measured"]}
    assert by_split["cifar10 test"]["images"] == 10_000
    assert body["sha256"].startswith(body["version"])


def test_commands_agree_with_the_service(service, examples):
    precision = service.get("/model").json()["dtype"]  # each would measure for itself which is the faster
    files = [str(ROOT / "examples" / f"{name}.png") for name in ("cat", "ship")]
    command = [sys.executable, "-m", "app.cli", "predict", "--json", "--top-k", "10", "--precision", precision, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    for line, name in zip(done.stdout.splitlines(), ("cat", "ship"), strict=True):
        served = {one["label"]: one["probability"] for one in ask(service, examples[name])["probabilities"]}
        for one in json.loads(line)["probabilities"]:
            assert one["probability"] == pytest.approx(served[one["label"]], abs=1e-3)


def test_healthcheck_follows_readiness(service, own_port):
    command = [sys.executable, "-m", "app.cli", "healthcheck", "--url"]
    assert subprocess.run([*command, service.url], cwd=ROOT, check=False).returncode == 0
    assert subprocess.run([*command, f"http://127.0.0.1:{own_port}"], cwd=ROOT, check=False).returncode == 1


@pytest.mark.data
def test_the_service_scores_as_the_checkpoint_does(service, cifar10_root, tmp_path):
    def evaluate(*more):
        result = tmp_path / "result.json"
        done = resnet("evaluate", "--root", cifar10_root, "--limit", "500", "--json", result, *more)
        assert done.returncode == 0, done.stderr
        return json.loads(result.read_text())

    served, offline = evaluate("--url", service.url), evaluate()
    assert served["version"] == offline["version"]
    assert served["top1"] == pytest.approx(offline["top1"], abs=0.0005)
    assert served["nll"] == pytest.approx(offline["nll"], abs=0.01)


@pytest.mark.data
@pytest.mark.parametrize(("least", "code"), [("0.0", 0), ("1", 1)])
def test_evaluate_prints_its_scores_and_fails_below_the_least_accuracy(cifar10_root, least, code):
    done = resnet("evaluate", "--root", cifar10_root, "--limit", "100", "--min-accuracy", least)
    assert done.returncode == code
    for word in ("top-1", "nll", "ece", "(15 bins)", "airplane"):
        assert word in done.stdout


@pytest.mark.data
def test_evaluate_of_a_service_that_is_not_there_is_one_line(cifar10_root, own_port):
    done = resnet("evaluate", "--root", cifar10_root, "--limit", "2", "--url", f"http://127.0.0.1:{own_port}")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no answer from" in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="what a process has loaded is read from /proc")
def test_on_a_cpu_no_torch_is_loaded(start):
    service = start(device="cpu").wait_ready()
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "openvino" in maps
    assert "libtorch" not in maps


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health", "/metrics", "/model", "/docs", "/openapi.json"])
def test_head_is_get_without_the_body(service, path):
    with httpx.Client(base_url=service.url, timeout=30) as http:
        for _ in range(2):  # the connection goes on where it should
            head, get = http.head(path), http.get(path)
            assert (head.status_code, head.content) == (200, b"")
            assert head.headers["content-type"] == get.headers["content-type"]
            assert int(head.headers["content-length"]) > 0
        assert http.head("/nowhere").status_code == 404
        assert http.head("/predict").status_code == 405
