"""Two HTTP processes in front of one engine process, as clients see them."""

import os
import signal
import socket
import time
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from tests.conftest import encode, noise
from tests.faulty_service import GOOD, PNG, ask, bad, hang
from tests.process import service_process
from tests.two_processes import client_ports, connections, kept_client, one_each, predict, wait_for_queue

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def two(tmp_path_factory, tuning):
    log = tmp_path_factory.mktemp("two") / "serve.log"
    with service_process(log, http_processes=2, timeout_ms=120_000, **tuning) as service:
        yield service.wait_ready()
        assert service.stop() == 0
        assert "Traceback" not in service.log


def test_each_of_them_answers_as_a_single_process_does(two, start, examples):
    service = start(timeout_ms=120_000)  # tuned alike: in another precision answers would differ
    files = [("file", one) for one in examples.values()] + [("file", b"no picture")]
    with one_each(two) as clients, httpx.Client(base_url=service.url, timeout=60) as single:
        for client in clients:
            for name, picture in examples.items():
                answer = predict(client, picture)
                assert answer.json()["predictions"][0]["label"] == name
                assert answer.json() == predict(single, picture).json()
            ours, theirs = (one.post("/predict", files=files).json()["predictions"] for one in (client, single))
            assert [one["label"] for one in ours[:-1]] == list(examples)
            assert ours[-1] == theirs[-1]
            large = encode(noise(400, 300))  # decoded in a thread
            assert predict(client, large).json() == predict(single, large).json()
            assert client.get("/model").json() == single.get("/model").json()
        assert all(connections(two))


def test_each_of_them_refuses_as_a_single_process_does(two):
    with one_each(two) as clients:
        for client in clients:
            for answer, status, code in [
                (predict(client, b"x", "text/plain"), 415, "unsupported-media-type"),
                (predict(client, b"no picture"), 422, "undecodable-image"),
                (predict(client, b"{", "application/json"), 400, "malformed-request"),
                (client.post("/predict?top_k=99", content=GOOD, headers=PNG), 422, "bad-parameter"),
                (client.get("/predict"), 405, "method-not-allowed"),
                (client.post("/predict", files=[("file", GOOD)] * 257), 413, "too-many-images"),
            ]:
                assert (answer.status_code, answer.json()["type"]) == (status, f"urn:resnet:problem:{code}")
        assert all(connections(two))
    with socket.create_connection(("127.0.0.1", two.port)) as too_large:
        too_large.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n")
        assert b"HTTP/1.1 413 " in too_large.recv(1000)


def test_a_port_that_is_taken_by_a_service_of_two_as_well_is_said_in_one_line(two, start):
    service = start(wait=False, http_processes=2, port=two.port)
    assert service.process.wait(timeout=120) != 0
    assert "Address already in use" in service.log
    assert "Traceback" not in service.log
    assert httpx.get(f"{two.url}/readyz").status_code == 200


def test_connections_go_to_the_process_that_has_the_fewest(two):
    while any(connections(two)):
        time.sleep(0.01)
    with one_each(two), ExitStack() as clients:  # a process says how many it has whenever it takes one
        for _ in range(38):
            clients.enter_context(socket.create_connection(("127.0.0.1", two.port)))
        while sum(connections(two)) < 40:
            time.sleep(0.01)
        assert max(connections(two)) <= 21


def test_the_metrics_are_those_of_all_whoever_is_asked(two, examples):
    names = (
        'resnet_requests_total{route="/predict",status="200"}',
        'resnet_request_seconds_count{route="/predict"}',
        'resnet_images_total{outcome="ok"}',
        'resnet_predictions_total{label="ship"}',
        "resnet_queue_seconds_count",
        "resnet_batch_images_sum",
    )

    def counted(client):
        values = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if line[0] != "#")
        return [float(values.get(name, 0)) for name in names]

    with one_each(two) as clients:
        before = counted(clients[0])
        for client, count in zip(clients, (3, 4), strict=True):
            for _ in range(count):
                assert predict(client, examples["ship"]).status_code == 200
        for client in clients:
            assert [now - then for now, then in zip(counted(client), before, strict=True)] == [7] * 6
        assert all(connections(two))
    assert two.metric("resnet_ready") == 1
    assert two.metric("resnet_queue_images") == 0
    lines = two.get("/metrics").text.splitlines()
    assert len([line for line in lines if line.startswith("resnet_model_info{")]) == 1
    assert len(lines) == len(set(lines))
    pids = [two.process.pid, *two.children]
    resident = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") for pid in pids)
    assert two.metric("process_resident_memory_bytes") == pytest.approx(resident, rel=0.1)


def test_requests_of_both_share_a_batch(start_two_faulty, pool, tmp_path):
    service = start_two_faulty()
    first = hang(service, pool, tmp_path)
    waiting = [pool.submit(ask, service, GOOD) for _ in range(7)]
    wait_for_queue(service, 7)
    assert min(connections(service)) >= 2
    (tmp_path / "release").touch()
    assert [one.result() for one in [first, *waiting]] == [(200, "")] * 8
    assert service.metric("resnet_batch_images_count") == 2
    assert service.metric("resnet_batch_images_sum") == 8
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0


def test_the_queue_has_one_bound_for_both_and_deadlines_are_kept(start_two_faulty, pool, tmp_path):
    service = start_two_faulty(batch_sizes="1", max_images=1, max_queue_images=2)
    first = hang(service, pool, tmp_path)
    waiting = [pool.submit(ask, service, GOOD) for _ in range(2)]
    wait_for_queue(service, 2)
    with one_each(service) as clients:
        for client in clients:
            answer = predict(client, GOOD)
            assert (answer.status_code, answer.json()["type"]) == (429, "urn:resnet:problem:queue-full")
            assert int(answer.headers["retry-after"]) >= 1
    (tmp_path / "release").touch()
    assert [one.result() for one in [first, *waiting]] == [(200, "")] * 3

    (tmp_path / "release").unlink()
    (tmp_path / "hanging").unlink()
    first = hang(service, pool, tmp_path)
    with one_each(service) as clients:
        for client in clients:
            answer = predict(client, GOOD, **{"x-timeout-ms": "200"})
            assert (answer.status_code, answer.json()["type"]) == (504, "urn:resnet:problem:deadline-passed")
            wait_for_queue(service, 0)
    (tmp_path / "release").touch()
    assert first.result() == (200, "")
    assert service.metric("resnet_batch_images_sum") == 4  # what had expired was not computed
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_client_that_leaves_costs_no_device_time(start_two_faulty, pool, tmp_path):
    service = start_two_faulty()
    first = hang(service, pool, tmp_path)
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: {len(GOOD)}\r\n\r\n"
    for _ in range(4):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(head.encode() + GOOD)
            wait_for_queue(service, 1)
        wait_for_queue(service, 0)
    assert service.metric("resnet_queue_images") == 0
    assert service.metric('resnet_images_total{outcome="client-gone"}') == 4
    (tmp_path / "release").touch()
    assert first.result() == (200, "")
    assert ask(service, GOOD) == (200, "")
    assert service.metric("resnet_batch_images_sum") == 2
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_what_fails_one_batch_fails_its_own_requests_and_nothing_else(start_two_faulty):
    service = start_two_faulty()
    for pictures, outcome in [
        ([bad("exception")], (500, "internal-error")),
        ([bad("thread dies")], (500, "internal-error")),
        ([bad("no memory")], (503, "engine-failed")),
        ([bad("no memory for two"), GOOD], (200, "")),
    ]:
        assert ask(service, *pictures) == outcome
        assert ask(service, GOOD) == (200, "")
        assert service.get("/readyz").status_code == 200
    assert service.stop() == 0


def test_a_hung_engine_turns_all_of_them_unready_until_it_goes_on(start_two_faulty, pool, tmp_path):
    service = start_two_faulty(stall_timeout_s=0.5)
    first = hang(service, pool, tmp_path)
    with one_each(service) as clients:
        for path in ("/readyz", "/livez"):
            for client in clients:
                while (said := client.get(path)).status_code == 200:
                    time.sleep(0.01)
                assert said.text == "the engine makes no progress\n"
        (tmp_path / "release").touch()
        assert first.result() == (200, "")
        for path in ("/readyz", "/livez"):
            for client in clients:
                while client.get(path).status_code != 200:
                    time.sleep(0.01)
    assert service.stop() == 0


def answer_of(client, path):
    """What a probe says, or None if the process of this client stands still, or so it seems."""
    try:
        answer = client.get(path, timeout=0.5)
        return answer.status_code, answer.text
    except httpx.TimeoutException:
        return None


def who_answers(clients, path):
    while True:
        for client in clients:
            if answer_of(client, path):
                return client


@pytest.mark.parametrize("which", ["an HTTP process", "the engine"])
def test_what_stands_still_turns_the_others_unready_until_it_goes_on(start, which):
    service = start(http_processes=2, stall_timeout_s=1.5)
    pid = service.process.pid if which == "the engine" else service.children[0]
    with one_each(service) as clients:
        os.kill(pid, signal.SIGSTOP)
        for path in ("/readyz", "/livez"):
            left = set(clients) if which == "the engine" else {who_answers(clients, path)}
            for client in left:
                while (said := answer_of(client, path)) != (503, f"{which} makes no progress\n"):
                    assert said is None or said[0] == 200
                    time.sleep(0.05)
        whose = "HTTP process 0: not ready: the engine process" if which == "the engine" else f" not ready: {which}"
        service.wait_logged(f"{whose} makes no progress")
        os.kill(pid, signal.SIGCONT)
        for path in ("/readyz", "/livez"):
            for client in clients:
                while (answer_of(client, path) or (0,))[0] != 200:
                    time.sleep(0.05)
        service.wait_logged("ready again after")
    assert service.stop() == 0


def test_a_process_that_stands_still_gets_no_further_connections(start):
    service = start(http_processes=2, stall_timeout_s=1)
    stopped = service.children[0]
    with ExitStack() as stack:
        clients = {}
        for _ in range(8):
            one = stack.enter_context(ExitStack())
            client, port = one.enter_context(kept_client(service))
            clients[port] = client, one
        for port in client_ports(service)[0]:
            clients.pop(port)[1].close()
        while connections(service)[0]:
            time.sleep(0.01)
        os.kill(stopped, signal.SIGSTOP)
        kept = [client for client, _ in clients.values()]
        while kept[0].get("/livez").status_code == 200:  # until it is known
            time.sleep(0.01)
        for _ in kept:  # it has the fewest all the while, and would answer nobody
            stack.enter_context(kept_client(service))
        assert connections(service) == [0, 2 * len(kept)]
        os.kill(stopped, signal.SIGCONT)
    assert service.stop() == 0


def test_a_renewed_file_of_keys_reaches_both(start, tmp_path, examples):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"old:{sha256(b'old').hexdigest()}\n")
    service = start(http_processes=2, api_keys_file=keys)

    def statuses():
        with one_each(service) as clients:
            headers = [{"authorization": f"Bearer {key}"} for key in ("old", "new")]
            return [predict(one, examples["cat"], **header).status_code for one in clients for header in headers]

    assert statuses() == [200, 401] * 2
    keys.write_text(f"new:{sha256(b'new').hexdigest()}\n")
    service.process.send_signal(signal.SIGHUP)
    service.wait_logged("read 1 keys", times=3)
    assert statuses() == [401, 200] * 2
    assert service.metric('resnet_key_requests_total{key="old"}') == 2
    assert service.stop() == 0


def test_a_keys_limit_is_one_for_both(start_two_faulty, pool, tmp_path):
    keys = tmp_path / "keys.txt"
    keys.write_text(f"few:{sha256(b'few').hexdigest()}:3\nmany:{sha256(b'many').hexdigest()}\n")
    service = start_two_faulty(api_keys_file=keys)
    few, many = ({"authorization": f"Bearer {key}"} for key in ("few", "many"))
    first = pool.submit(ask, service, bad("hang"), **few)
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    waiting = [pool.submit(ask, service, GOOD, **few) for _ in range(2)]
    wait_for_queue(service, 2)
    with one_each(service) as clients:
        for client in clients:
            answer = predict(client, GOOD, **few)
            assert (answer.status_code, answer.json()["type"]) == (429, "urn:resnet:problem:too-many-requests")
        waiting += [pool.submit(ask, service, GOOD, **many) for _ in range(4)]
        wait_for_queue(service, 6)
        (tmp_path / "release").touch()
        assert [one.result() for one in [first, *waiting]] == [(200, "")] * 7
        for client in clients:
            assert predict(client, GOOD, **few).status_code == 200
    assert service.stop() == 0


def test_probes_have_a_port_of_their_own_in_the_engine_process(start, examples, own_port):
    service = start(http_processes=2, admin_port=own_port)
    with one_each(service) as clients:
        for client in clients:
            assert predict(client, examples["cat"]).status_code == 200
            assert client.get("/readyz").status_code == 404
    assert service.metric('resnet_requests_total{route="/predict",status="200"}') == 2
    assert service.probe("/health").json()["status"] == "ready"
    os.kill(service.children[0], signal.SIGKILL)
    assert service.process.wait(timeout=60) == 1
