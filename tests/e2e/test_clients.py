"""Clients that are slow, leave, or come in crowds, against the real process."""

import asyncio
import socket
import statistics
import subprocess
import sys
import time

import httpx
import pytest

from benchmarks.records import write
from tests.conftest import ROOT
from tests.faulty_service import GOOD, PNG, ask, bad
from tests.slow_clients import HEADER, KINDS, body_by_bytes, half_a_header, header_by_bytes, silent, until_closed

pytestmark = pytest.mark.e2e


def test_slow_clients_are_closed_and_good_requests_answered_meanwhile(start, examples):
    service = start(header_timeout_s=1, body_timeout_s=1)
    answers = []

    async def good(slow):
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            while not all(one.done() for one in slow) or len(answers) < 10:
                answers.append(await http.post("/predict", content=examples["cat"], headers=PNG))

    async def scenario():
        kinds = [KINDS[number % len(KINDS)] for number in range(100)]
        slow = [asyncio.create_task(until_closed(service.port, kind)) for kind in kinds]
        await asyncio.wait_for(good(slow), 120)
        return list(zip(kinds, [one.result() for one in slow], strict=True))

    service.get("/livez")
    files = service.open_files
    told = asyncio.run(scenario())
    assert {answer.status_code for answer in answers} == {200}
    expected = {
        silent: b"",
        half_a_header: b"urn:resnet:problem:header-too-slow",
        header_by_bytes: b"urn:resnet:problem:header-too-slow",
        body_by_bytes: b"urn:resnet:problem:body-too-slow",
    }
    for kind, answer in told:
        assert bool(answer) == bool(expected[kind]), kind
        assert expected[kind] in answer, kind
    assert service.metric('resnet_rejected_total{reason="header-too-slow"}') == 50
    while service.open_files > files:
        time.sleep(0.01)
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_clients_that_leave_cost_one_debug_line_and_no_device_time(start_faulty, tmp_path):
    service = start_faulty(log_level="debug", batch_sizes="1,2")
    for number in range(5):
        with socket.create_connection(("127.0.0.1", service.port)) as client:
            client.sendall(HEADER.replace(b"host: x", f"host: x\r\nx-request-id: mid-body-{number}".encode()) + b"abc")
    while service.metric('resnet_requests_total{route="/predict",status="499"}', 0) < 5:
        time.sleep(0.01)
    assert service.metric("resnet_batch_images_sum") == 0

    # The first one's first batch keeps the engine until everybody has left.
    many = httpx.Request("POST", service.url, files=[("file", one) for one in [bad("hang"), *[GOOD] * 249]])
    body, kind = many.read(), many.headers["content-type"]
    head = (
        f"POST /predict HTTP/1.1\r\nhost: x\r\nx-request-id: mid-wait-%d\r\ncontent-type: {kind}\r\ncontent-length: %d"
    )
    with socket.create_connection(("127.0.0.1", service.port)) as ahead:
        ahead.sendall((head % (0, len(body))).encode() + b"\r\n\r\n" + body)
        while not (tmp_path / "hanging").exists():
            time.sleep(0.01)
        for number in range(1, 4):  # these wait behind the first
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                client.sendall((head % (number, len(body))).encode() + b"\r\n\r\n" + body)
                while service.metric("resnet_queue_images") < 248 + 250:
                    time.sleep(0.01)
            while service.metric('resnet_images_total{outcome="client-gone"}', 0) < 250 * number:
                time.sleep(0.01)
    while service.metric('resnet_images_total{outcome="client-gone"}', 0) < 1000:
        time.sleep(0.01)
    (tmp_path / "release").touch()
    assert ask(service, GOOD) == (200, "")
    assert service.metric("resnet_batch_images_sum") == 3  # the first one's first batch, and the last's
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    for name in [f"mid-body-{number}" for number in range(5)] + [f"mid-wait-{number}" for number in range(4)]:
        lines = [line for line in service.log.splitlines() if name in line]
        assert len(lines) == 1
        assert " DEBUG " in lines[0]
        assert " 499 " in lines[0]
    assert "Traceback" not in service.log


def test_a_crowd_finds_its_limit_and_the_port_of_the_probes_outlives_the_first(start, examples, own_port):
    admin_port = own_port
    service = start(max_open_files=256, header_timeout_s=1, admin_port=admin_port)
    assert "the limit of open files allows for 128 connections only" in service.log
    assert service.get("/readyz").status_code == 404

    async def crowd():
        return await asyncio.gather(*(until_closed(service.port, silent) for _ in range(400)))

    assert set(asyncio.run(crowd())) == {b""}
    assert service.metric('resnet_rejected_total{reason="too-many-connections"}') > 0
    answer = httpx.post(f"{service.url}/predict", content=examples["cat"], headers=PNG, timeout=60)
    assert answer.status_code == 200
    command = [sys.executable, "-m", "app.cli", "healthcheck", "--port", str(service.port)]
    assert subprocess.run([*command, "--admin-port", str(admin_port)], cwd=ROOT, check=False).returncode == 0
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 1

    with socket.create_connection(("127.0.0.1", service.port), timeout=60) as accepted:
        length = len(examples["cat"])
        accepted.sendall(HEADER.replace(b"1000", str(length).encode()) + examples["cat"][:100])
        service.process.terminate()
        while service.probe("/readyz").status_code == 200:
            pass
        while is_open(service.port):
            assert service.probe("/readyz").status_code == 503
        assert service.probe("/readyz").text == "the service is shutting down\n"
        accepted.sendall(examples["cat"][100:])
        assert accepted.recv(100).startswith(b"HTTP/1.1 200 ")
    assert service.process.wait(timeout=60) == 0
    assert not is_open(admin_port)
    for trouble in ("Traceback", "out of system resource", "Too many open files"):
        assert trouble not in service.log


def is_open(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionError:
        return False
    return True


@pytest.mark.chaos
def test_500_slow_clients_for_a_minute_at_most_double_p99(start, examples):
    service = start()
    times = {False: [], True: []}

    def measure(slow, seconds):
        with httpx.Client(base_url=service.url, timeout=60) as http:
            until = time.perf_counter() + seconds
            while (begun := time.perf_counter()) < until:
                assert http.post("/predict", content=examples["cat"], headers=PNG).status_code == 200
                times[slow].append(time.perf_counter() - begun)

    measure(False, 3)  # not counted: warming up
    times[False].clear()
    files = service.open_files
    for _ in range(4):
        measure(False, 15)
        command = [sys.executable, "-m", "tests.slow_clients", str(service.port), "500"]
        crowd = subprocess.Popen(command, cwd=ROOT)
        try:
            while service.open_files < files + 400:
                time.sleep(0.01)
            measure(True, 15)
            assert crowd.poll() is None
        finally:
            crowd.kill()
            crowd.wait()
        while service.open_files > files:
            time.sleep(0.01)
    p50, p99 = (
        {slow: statistics.quantiles(times[slow], n=100, method="inclusive")[cut] * 1e3 for slow in times}
        for cut in (49, 98)
    )
    write(
        "reliability/slow_clients.json",
        {
            "command": "pytest -m chaos tests/e2e/test_clients.py",
            "slow_clients": 500,
            "requests": {"without": len(times[False]), "with": len(times[True])},
            "p50_ms": {"without": round(p50[False], 2), "with": round(p50[True], 2)},
            "p99_ms": {"without": round(p99[False], 2), "with": round(p99[True], 2)},
            "p99_ratio": round(p99[True] / p99[False], 2),
        },
    )
    assert service.stop() == 0
    assert "Traceback" not in service.log
    assert p99[True] <= 2 * p99[False]
