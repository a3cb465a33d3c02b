"""Parts that break in the real process: each has its outcome, at once, and never a silent hang."""

import asyncio
import re
import signal
import socket
import time

import httpx
import pytest

from tests.faulty_service import GOOD, PNG, ask, bad, hang, undecodable

pytestmark = pytest.mark.e2e


def ask_together(service, *pictures, **headers):
    """One request a picture, all at once; the status of each."""

    async def everyone():
        async with httpx.AsyncClient(base_url=service.url, headers=PNG | headers, timeout=60) as http:
            return await asyncio.gather(*(http.post("/predict", content=one) for one in pictures))

    return [answer.status_code for answer in asyncio.run(everyone())]


def wait_for_status(service, path, status):
    while service.get(path).status_code != status:
        time.sleep(0.01)


def test_what_fails_one_batch_or_one_thread_fails_its_own_requests_and_nothing_else(start_faulty):
    service = start_faulty()
    for pictures, outcome in [
        ([bad("exception")], (500, "internal-error")),
        ([bad("thread dies")], (500, "internal-error")),
        ([bad("no memory")], (503, "engine-failed")),
        ([bad("no memory"), GOOD], (503, "engine-failed")),
        ([bad("no memory for two"), GOOD], (200, "")),
        ([undecodable("thread dies")], (500, "internal-error")),
        ([undecodable("thread dies")] * 20, (500, "internal-error")),  # more than there are threads
    ]:
        assert ask(service, *pictures) == outcome
        assert ask(service, GOOD) == (200, "")
        assert service.get("/readyz").status_code == 200
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0


@pytest.mark.parametrize("fault", ["broken", "batcher dies"])
def test_what_cannot_be_mended_fails_all_that_waits_at_once_and_ends_the_process(start_faulty, fault):
    service = start_faulty(batch_sizes="1")
    statuses = ask_together(service, bad(fault), *[GOOD] * 20)
    assert statuses[0] == 503
    assert set(statuses) <= {200, 503}
    assert service.process.wait(timeout=60) == 1
    assert service.log.count("the engine or its batcher died") == 1


def test_failing_batch_after_batch_ends_the_process(start_faulty):
    service = start_faulty()
    assert [ask(service, bad("exception"))[0] for _ in range(3)] == [500] * 3
    assert service.process.wait(timeout=60) == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_while_nothing_would_be_computed_it_is_unready_and_ready_again_by_itself(start_faulty, tmp_path, processes):
    service = start_faulty(http_processes=processes)
    (tmp_path / "always").write_text("no memory")  # as of a GPU whose memory another program has taken
    assert ask(service, GOOD) == (503, "engine-failed")
    wait_for_status(service, "/readyz", 503)  # nobody asks for a prediction any more
    assert service.get("/readyz").text == "the engine fails\n"
    assert service.get("/livez").status_code == 200
    assert service.metric("resnet_ready") == 0
    service.wait_logged(" not ready: the engine fails\n")
    (tmp_path / "always").unlink()
    wait_for_status(service, "/readyz", 200)
    assert ask(service, GOOD) == (200, "")
    service.wait_logged(" ready again after ")
    assert service.log.count("the engine fails") == 1
    assert service.log.count("out of memory") == 1
    assert service.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_engine_that_fails_is_given_up_though_nobody_asks_it(start_faulty, tmp_path, processes):
    service = start_faulty(http_processes=processes)
    (tmp_path / "always").write_text("exception")
    assert ask(service, GOOD) == (500, "internal-error")
    assert service.process.wait(timeout=60) == 1
    assert "EngineBroken: 3 batches failed in a row" in service.log
    assert service.log.count("a batch of 1 failed") == 1


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_failure_a_client_that_still_sends_keeps_no_process_from_ending(start_faulty, processes):
    service = start_faulty(http_processes=processes, batch_sizes="1", drain_timeout_s=3600, body_timeout_s=3600)
    with socket.create_connection(("127.0.0.1", service.port)) as sends:
        sends.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 99\r\n\r\nx")
        assert ask(service, bad("broken")) == (503, "engine-failed")
        assert service.process.wait(timeout=60) == 1
    assert "does not end" not in service.log


SOON = {"x-timeout-ms": "300"}
LATE = (504, "deadline-passed")


def asked_until_it_hangs(service, tmp_path, picture):
    """Ask with a short deadline, again where a busy machine does not get there by then; return how often."""
    count = 0
    while not (tmp_path / "hanging").exists():
        assert ask(service, picture, **SOON) == LATE
        count += 1
    return count


def test_behind_an_engine_that_hangs_requests_end_at_their_deadline_and_it_may_come_back(start_faulty, tmp_path):
    service = start_faulty(stall_timeout_s=0.5)
    asked = asked_until_it_hangs(service, tmp_path, bad("hang"))  # and it hangs still
    assert ask_together(service, *[GOOD] * 20, **SOON) == [504] * 20
    wait_for_status(service, "/livez", 503)
    assert service.get("/readyz").text == "the engine makes no progress\n"
    assert ask(service, GOOD, **SOON) == LATE
    assert service.metric("resnet_queue_images") == 0
    service.wait_logged(" not ready: the engine makes no progress\n")
    (tmp_path / "release").touch()
    wait_for_status(service, "/livez", 200)
    assert ask(service, GOOD) == (200, "")
    service.wait_logged(" ready again after ")
    assert service.stop() == 0
    assert sum(map(int, re.findall(r"refused in the last \d+ s: (\d+) deadline-passed", service.log))) == asked + 21
    assert "Traceback" not in service.log


def test_decoding_that_hangs_ends_at_the_deadline_and_fails_the_probe_once_no_thread_is_left(
    start_faulty, pool, tmp_path
):
    service = start_faulty(stall_timeout_s=0.5, decode_threads=2)
    first = hang(service, pool, tmp_path, undecodable("hang"))
    assert ask(service, *[GOOD] * 3) == (200, "")  # one thread is left
    (tmp_path / "hanging").unlink()
    asked_until_it_hangs(service, tmp_path, undecodable("hang"))
    assert ask(service, *[GOOD] * 3, **SOON) == LATE
    wait_for_status(service, "/livez", 503)
    assert service.get("/readyz").text == "the decoder makes no progress\n"
    (tmp_path / "release").touch()
    wait_for_status(service, "/livez", 200)
    assert first.result() == (200, "")
    assert ask(service, *[GOOD] * 3) == (200, "")
    assert service.stop() == 0


@pytest.mark.parametrize("processes", [1, 2])
def test_an_engine_that_hangs_for_good_ends_the_service(start_faulty, processes):
    service = start_faulty(http_processes=processes, timeout_ms=120_000, stall_timeout_s=1.5, stall_exit_s=2)
    assert ask(service, bad("hang")) == (503, "engine-failed")
    assert service.process.wait(timeout=60) == 1
    assert "the engine makes no progress, for 2 s" in service.log
    assert re.search(r'^  File ".*faulty_server.py", line \d+ in hang$', service.log, re.M)
    assert ('app/processes/http_process.py", line' in service.log) is (processes > 1)


@pytest.mark.parametrize(("timeout_ms", "status"), [(1000, 504), (120_000, 503)])
def test_an_engine_that_hangs_keeps_neither_a_request_nor_the_process(start_faulty, tmp_path, timeout_ms, status):
    service = start_faulty(timeout_ms=timeout_ms, drain_timeout_s=2)

    async def scenario():
        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            waiting = asyncio.ensure_future(http.post("/predict", content=bad("hang"), headers=PNG))
            while not (tmp_path / "hanging").exists():
                if waiting.done():  # late before it got there, on a busy machine
                    waiting = asyncio.ensure_future(http.post("/predict", content=bad("hang"), headers=PNG))
                await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            return (await waiting).status_code

    assert asyncio.run(scenario()) == status
    assert service.process.wait(timeout=60) == 0
    assert (": 1 engine-failed" in service.log) is (status == 503)


@pytest.fixture(params=[0, 1], ids=["the first of two batches", "the second of two batches"])
def beside_good(request, monkeypatch):
    """The pictures of two batches that are computed beside each other, one of which has a fault."""
    monkeypatch.setenv("FAULTY_OVERLAPS", "1")

    def pictures(fault):
        batches = [GOOD] * 2, [bad(fault), GOOD]
        return [*batches[1 - request.param], *batches[request.param]]

    return pictures


def test_what_breaks_beside_another_batch_fails_its_own_request_and_nothing_else(start_faulty, beside_good):
    service = start_faulty(batch_sizes="1,2")
    for fault, outcome in [
        ("exception", (500, "internal-error")),
        ("thread dies", (500, "internal-error")),
        ("no memory", (503, "engine-failed")),
        ("no memory for two", (200, "")),
    ]:
        assert ask(service, *beside_good(fault)) == outcome
        assert ask(service, *[GOOD] * 6) == (200, "")
        assert service.get("/readyz").status_code == 200
    assert service.metric("resnet_queue_images") == 0
    assert ask(service, *beside_good("broken")) == (503, "engine-failed")
    assert service.process.wait(timeout=60) == 1


def test_a_batch_that_hangs_beside_another_one_is_seen_and_all_comes_back_with_it(start_faulty, beside_good, tmp_path):
    service = start_faulty(batch_sizes="1,2", stall_timeout_s=0.5)
    while not (tmp_path / "hanging").exists():
        assert ask(service, *beside_good("hang"), **SOON) == LATE
    assert set(ask_together(service, *[GOOD] * 20, **SOON)) <= {504, 429}  # where the batch that ended took long
    wait_for_status(service, "/livez", 503)
    (tmp_path / "release").touch()
    wait_for_status(service, "/livez", 200)
    assert [ask(service, GOOD, GOOD) for _ in range(5)] == [(200, "")] * 5  # one by one: it is thought to be slow now
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_batch_that_hangs_beside_another_one_for_good_ends_the_service(start_faulty, beside_good):
    service = start_faulty(batch_sizes="1,2", timeout_ms=120_000, stall_timeout_s=1.5, stall_exit_s=2)
    assert ask(service, *beside_good("hang")) == (503, "engine-failed")
    assert service.process.wait(timeout=60) == 1
    assert re.search(r'^  File ".*faulty_server.py", line \d+ in hang$', service.log, re.M)


def test_a_batch_that_hangs_beside_another_one_does_not_keep_the_process(start_faulty, beside_good, pool, tmp_path):
    service = start_faulty(batch_sizes="1,2", drain_timeout_s=2)
    waiting = pool.submit(ask, service, *beside_good("hang"))
    while not (tmp_path / "hanging").exists():
        time.sleep(0.01)
    service.process.send_signal(signal.SIGTERM)
    assert waiting.result() == (503, "engine-failed")
    assert service.process.wait(timeout=60) == 0


def test_an_engine_that_hangs_while_it_loads_keeps_no_process(start_faulty, monkeypatch):
    monkeypatch.setenv("FAULTY_LOAD", "1")
    service = start_faulty(wait=False)
    service.wait_logged("listening on")
    assert service.get("/readyz").text == "the model is loading\n"
    assert ask(service, GOOD) == (503, "not-ready")
    assert service.stop() == 0
