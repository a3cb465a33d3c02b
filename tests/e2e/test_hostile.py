"""Bad input against the real process: its status, a fixed text, flat memory, and the next good request works."""

import asyncio
import socket
import time

import httpx
import pytest

from tests.bad_requests import BAD, PNG
from tests.faulty_service import GOOD, ask, bad

pytestmark = pytest.mark.e2e


def test_bad_input_gets_its_status_and_costs_nothing(service, examples):
    good = {"content": examples["cat"], "headers": PNG}
    many = [("file", examples["cat"])] * 1000
    with httpx.Client(base_url=service.url, timeout=30) as http:
        for _ in range(20):
            assert http.post("/predict", **good).status_code == 200
        before = service.resident_bytes
        for _ in range(5):
            for name, (content, headers, status, code) in BAD.items():
                answer = http.post("/predict", content=content, headers=headers)
                assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, code), name
                assert http.post("/predict", **good).status_code == 200, name
            answer = http.post("/predict", files=many)
            assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (413, "too-many-images")
            assert http.post("/predict", **good).status_code == 200
        assert service.resident_bytes - before < 50 << 20
    assert "Traceback" not in service.log


@pytest.mark.parametrize("expects", [b"", b"expect: 100-continue\r\n", b"expect: foo\r\n"])
@pytest.mark.parametrize(
    ("path", "length", "status"), [(b"/predict", 17 << 20, 413), (b"/nowhere", 12 << 20, 404)], ids=["413", "404"]
)
def test_who_sends_a_refused_body_all_the_same_gets_its_answer_and_no_reset(service, path, length, status, expects):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        head = b"POST %s HTTP/1.1\r\nhost: x\r\n%scontent-length: %d\r\n\r\n" % (path, expects, length)
        client.sendall(head + bytes(length))
        assert client.recv(1000).startswith(b"HTTP/1.1 %d " % status)


def test_who_waits_for_leave_to_send_is_refused_without_it(service):
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        head = b"POST /predict HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
        client.sendall(head % (17 << 20))
        answer = b"".join(iter(lambda: client.recv(1000), b""))
        assert answer.startswith(b"HTTP/1.1 413 ")
        client.sendall(bytes(17 << 20))  # no error: the service takes what it did not ask for
        assert client.recv(1000) == b""


def test_a_body_that_stops_coming_gets_408(start):
    service = start(body_timeout_s=0.2)
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\nabc"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_work_of_a_client_that_left_is_dropped_from_the_queue(start_faulty, tmp_path):
    service = start_faulty(batch_sizes="1,2")
    images = [("file", one) for one in [bad("hang"), *[GOOD] * 199]]  # the first two keep the engine until it has left
    request = httpx.Request("POST", f"{service.url}/predict", files=images)
    body = request.read()
    head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: {request.headers['content-type']}\r\n"
    with socket.create_connection(("127.0.0.1", service.port)) as client:
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        while not (tmp_path / "hanging").exists():
            time.sleep(0.01)
    while not service.metric('resnet_images_total{outcome="client-gone"}'):
        time.sleep(0.01)
    (tmp_path / "release").touch()
    assert ask(service, GOOD) == (200, "")
    assert service.metric("resnet_batch_images_sum") == 3
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_overload_gets_only_200_and_429_and_the_queue_stays_bounded(start, examples):
    # Pinned: beside another program, a measured batch may hold more than may wait here.
    service = start(max_queue_images=32, max_images=32, batch_sizes="1,2,4,8,16,32", timeout_ms=60_000)

    async def flood():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as http:
            return await asyncio.gather(
                *(http.post("/predict", content=examples["cat"], headers=PNG) for _ in range(400))
            )

    answers = asyncio.run(flood())
    statuses = {answer.status_code for answer in answers}
    assert statuses == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1
    ok = sum(answer.status_code == 200 for answer in answers)
    assert service.metric('resnet_images_total{outcome="ok"}') == ok
    assert service.metric("resnet_queue_images") == 0
    answer = httpx.post(f"{service.url}/predict", content=examples["cat"], headers=PNG, timeout=30)
    assert answer.status_code == 200
