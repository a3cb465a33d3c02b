"""Two HTTP processes in front of one engine process, as clients see them."""

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.conftest import encode, noise
from tests.e2e.test_broken_parts import GOOD, PNG, ask, bad
from tests.process import free_port, service_process

pytestmark = pytest.mark.e2e


def children(service):
    """The ids of the HTTP processes."""
    pid = service.process.pid
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def only(service, index):
    """Let one HTTP process alone accept connections; the others stand still."""
    others = [pid for number, pid in enumerate(children(service)) if number != index]
    for pid in others:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in others:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    log = tmp_path_factory.mktemp("two") / "serve.log"
    with service_process(log, http_processes=2, timeout_ms=120_000) as service:
        yield service.wait_ready()
        assert service.stop() == 0
        assert "Traceback" not in service.log


@pytest.fixture
def start_faulty(start, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULTY_FOLDER", str(tmp_path))
    return lambda **options: start(
        command=("tests.faulty_server",), **{"timeout_ms": 120_000, "http_processes": 2, **options}
    )


@pytest.fixture
def pool():
    with ThreadPoolExecutor(16) as pool:
        yield pool


def hang(service, pool, tmp_path):
    """Occupy the engine with one request until `release`; return what will be its answer."""
    first = pool.submit(ask, service, bad("hang"))
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    return first


def wait_for_metric(service, name, value):
    while service.metric(name) != value:
        time.sleep(0.01)


def predict(service, content, kind="image/png", **headers):
    return httpx.post(f"{service.url}/predict", content=content, headers={"content-type": kind, **headers}, timeout=60)


@pytest.mark.parametrize("index", [0, 1])
def test_each_of_them_answers_as_a_single_process_does(two, service, examples, index):
    files = [("file", one) for one in examples.values()] + [("file", b"no picture")]
    with only(two, index):
        for name, picture in examples.items():
            answer = predict(two, picture)
            assert answer.json()["predictions"][0]["label"] == name
            assert answer.json() == predict(service, picture).json()
        together = [httpx.post(f"{one.url}/predict", files=files, timeout=60).json() for one in (two, service)]
        assert [one["label"] for one in together[0]["predictions"][:-1]] == list(examples)
        assert together[0]["predictions"][-1] == together[1]["predictions"][-1]
        large = encode(noise(400, 300))  # decoded in a thread
        assert predict(two, large).json() == predict(service, large).json()
        assert httpx.get(f"{two.url}/model").json() == httpx.get(f"{service.url}/model").json()


@pytest.mark.parametrize("index", [0, 1])
def test_each_of_them_refuses_as_a_single_process_does(two, index):
    too_large = socket.create_connection(("127.0.0.1", two.port))
    with only(two, index):
        for answer, status, code in [
            (predict(two, b"x", "text/plain"), 415, "unsupported-media-type"),
            (predict(two, b"no picture"), 422, "undecodable-image"),
            (predict(two, b"{", "application/json"), 400, "malformed-request"),
            (httpx.post(f"{two.url}/predict?top_k=99", content=GOOD, headers=PNG), 422, "bad-parameter"),
            (httpx.get(f"{two.url}/predict"), 405, "method-not-allowed"),
            (httpx.post(f"{two.url}/predict", files=[("file", GOOD)] * 257), 413, "too-many-images"),
        ]:
            assert (answer.status_code, answer.json()["type"]) == (status, f"urn:resnet:problem:{code}")
    too_large.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
    assert b"HTTP/1.1 413 " in too_large.recv(1000)
    too_large.close()


def test_the_metrics_are_those_of_all_whoever_is_asked(two, examples):
    def counted():
        names = (
            'resnet_requests_total{route="/predict",status="200"}',
            'resnet_request_seconds_count{route="/predict"}',
            'resnet_images_total{outcome="ok"}',
            'resnet_predictions_total{label="ship"}',
            "resnet_queue_seconds_count",
            "resnet_batch_images_sum",
        )
        return [two.metric(name) for name in names]

    before = counted()
    for index, count in ((0, 3), (1, 4)):
        with only(two, index):
            for _ in range(count):
                assert predict(two, examples["ship"]).status_code == 200
    for _ in range(10):
        assert [now - then for now, then in zip(counted(), before, strict=True)] == [7] * 6
    assert two.metric("resnet_ready") == 1
    assert two.metric("resnet_queue_images") == 0
    lines = httpx.get(f"{two.url}/metrics").text.splitlines()
    assert len([line for line in lines if line.startswith("resnet_model_info{")]) == 1
    assert len(lines) == len(set(lines))
    pids = [two.process.pid, *children(two)]
    resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in pids)
    assert two.metric("process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)


def test_requests_of_both_share_a_batch(start_faulty, pool, tmp_path):
    service = start_faulty()
    first = hang(service, pool, tmp_path)
    waiting = []
    for index, count in ((0, 3), (1, 4)):
        before = len(waiting)
        with only(service, index):
            waiting += [pool.submit(ask, service, GOOD) for _ in range(count)]
            deadline = time.monotonic() + 60
            while httpx.get(f"{service.url}/health").json()["queue_images"] != before + count:
                assert time.monotonic() < deadline
    (tmp_path / "release").touch()
    assert [one.result() for one in [first, *waiting]] == [(200, "")] * 8
    assert service.metric("resnet_batch_images_count") == 2
    assert service.metric("resnet_batch_images_sum") == 8
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0


def test_the_queue_has_one_bound_for_both_and_deadlines_are_kept(start_faulty, pool, tmp_path):
    service = start_faulty(batch_sizes="1", max_images=1, max_queue_images=2)
    first = hang(service, pool, tmp_path)
    with only(service, 0):
        waiting = [pool.submit(ask, service, GOOD) for _ in range(2)]
        # One of them is in the thread behind the first, for batches of one are full, and frees its place only then.
        while httpx.get(f"{service.url}/health").json()["queue_images"] != 2:
            time.sleep(0.01)
    for index in (0, 1):
        with only(service, index):
            answer = predict(service, GOOD)
            assert (answer.status_code, answer.json()["type"]) == (429, "urn:resnet:problem:queue-full")
            assert int(answer.headers["retry-after"]) >= 1
    (tmp_path / "release").touch()
    assert [one.result() for one in [first, *waiting]] == [(200, "")] * 3

    (tmp_path / "release").unlink()
    (tmp_path / "hanging").unlink()
    first = hang(service, pool, tmp_path)
    for index in (0, 1):
        with only(service, index):
            assert ask(service, GOOD, **{"x-timeout-ms": "200"}) == (504, "deadline-passed")
    wait_for_metric(service, "resnet_queue_images", 0)
    (tmp_path / "release").touch()
    assert first.result() == (200, "")
    assert service.metric("resnet_batch_images_sum") == 4  # what had expired was not computed
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_client_that_leaves_costs_no_device_time(start_faulty, pool, tmp_path):
    service = start_faulty()
    first = hang(service, pool, tmp_path)
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(GOOD)}\r\n\r\n"
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(head.encode() + GOOD)
            wait_for_metric(service, "resnet_queue_images", 1)
        wait_for_metric(service, "resnet_queue_images", 0)
    assert service.metric('resnet_images_total{outcome="client-gone"}') == 4
    (tmp_path / "release").touch()
    assert first.result() == (200, "")
    assert ask(service, GOOD) == (200, "")
    assert service.metric("resnet_batch_images_sum") == 2
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_what_fails_one_batch_fails_its_own_requests_and_nothing_else(start_faulty):
    service = start_faulty()
    for pictures, outcome in [
        ([bad("exception")], (500, "internal-error")),
        ([bad("thread dies")], (500, "internal-error")),
        ([bad("no memory")], (503, "engine-failed")),
        ([bad("no memory for two"), GOOD], (200, "")),
    ]:
        assert ask(service, *pictures) == outcome
        assert ask(service, GOOD) == (200, "")
        assert httpx.get(f"{service.url}/readyz").status_code == 200
    assert service.stop() == 0


def test_what_stands_still_turns_all_of_them_unready_until_it_goes_on(start):
    service = start(http_processes=2, stall_timeout_s=1.5)
    for pid, reason in ((children(service)[0], "an HTTP process makes"), (service.process.pid, "the engine makes")):
        os.kill(pid, signal.SIGSTOP)
        for path, status in (("readyz", 503), ("livez", 503)):
            while (answer := httpx.get(f"{service.url}/{path}")).status_code != status:
                time.sleep(0.05)
            assert answer.text == f"{reason} no progress\n"
        os.kill(pid, signal.SIGCONT)
        for path in ("readyz", "livez"):
            while httpx.get(f"{service.url}/{path}").status_code != 200:
                time.sleep(0.05)
    assert service.stop() == 0


def test_a_renewed_file_of_keys_reaches_both(start, tmp_path, examples):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"old:{sha256(b'old').hexdigest()}\n")
    service = start(http_processes=2, api_keys_file=keys)

    def statuses():
        found = []
        for index in (0, 1):
            with only(service, index):
                found += [
                    predict(service, examples["cat"], authorization=f"Bearer {key}").status_code
                    for key in ("old", "new")
                ]
        return found

    assert statuses() == [200, 401] * 2
    keys.write_text(f"new:{sha256(b'new').hexdigest()}\n")
    service.process.send_signal(signal.SIGHUP)
    while service.log.count("read 1 keys") < 2:
        time.sleep(0.01)
    assert statuses() == [401, 200] * 2
    assert service.metric('resnet_key_requests_total{key="old"}') == 2
    assert service.stop() == 0


def test_probes_have_a_port_of_their_own_in_the_engine_process(start, examples):
    service = start(http_processes=2, admin_port=free_port())
    for index in (0, 1):
        with only(service, index):
            assert predict(service, examples["cat"]).status_code == 200
            assert httpx.get(f"{service.url}/readyz").status_code == 404
    assert service.metric('resnet_requests_total{route="/predict",status="200"}') == 2
    assert httpx.get(f"{service.probes_url}/health").json()["status"] == "ready"
    os.kill(children(service)[0], signal.SIGKILL)
    assert service.process.wait(timeout=60) == 1
