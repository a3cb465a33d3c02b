"""The life of two HTTP processes and their engine process: draining, reloading, and the end of any of them."""

import asyncio
import os
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.checkpoints import put
from tests.drains import DRAIN_DELAY_S, drain_under_load
from tests.faulty_service import GOOD, ask, bad, hang
from tests.reloads import BATCH_SIZES, Clients, reload

pytestmark = pytest.mark.e2e


def runs(pid):
    """Whether a process is there, and no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_the_end_of(pids):
    until = time.monotonic() + 60
    while any(runs(pid) for pid in pids):
        assert time.monotonic() < until
        time.sleep(0.01)


def assert_port_is_free(service):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", service.port))
        listener.listen()


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_sigterm_under_load_loses_no_accepted_request_and_exits_0(start, examples, rounds):
    for _ in range(rounds):
        service = start(http_processes=2, drain_delay_s=DRAIN_DELAY_S)
        pids = service.children
        assert len(pids) == 2
        drain_under_load(service, examples["cat"])
        wait_for_the_end_of(pids)
        assert_port_is_free(service)


def test_a_terminals_signal_to_every_process_is_one_signal(start, examples):
    service = start(http_processes=2)
    for pid in [*service.children, service.process.pid]:
        os.kill(pid, signal.SIGINT)
    assert service.process.wait(timeout=60) == 0
    assert "second signal" not in service.log


def test_sigterm_while_starting_exits_0(start):
    service = start(wait=False, http_processes=2, drain_delay_s=3600)  # nobody was told that it is ready
    service.wait_logged("listening on")
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_second_signal_ends_all_of_them_at_once(start):
    service = start(http_processes=2, drain_delay_s=3600)
    pids = service.children
    service.process.send_signal(signal.SIGTERM)
    service.wait_logged("draining")
    while service.get("/readyz").status_code != 503:
        time.sleep(0.01)
    assert service.stop() == 128 + signal.SIGTERM
    wait_for_the_end_of(pids)
    assert_port_is_free(service)


@pytest.mark.parametrize("victim", ["HTTP process", "engine process"])
def test_the_death_of_any_is_the_end_of_all_and_what_waits_gets_503(start_two_faulty, pool, tmp_path, victim):
    service = start_two_faulty()
    pids = service.children
    first = hang(service, pool, tmp_path)
    waiting = [pool.submit(ask_or_lost, service) for _ in range(12)]
    while service.get("/health").json()["queue_images"] != 12:
        time.sleep(0.01)
    killed = pids[0] if victim == "HTTP process" else service.process.pid
    os.kill(killed, signal.SIGKILL)
    code = service.process.wait(timeout=60)
    assert code == (1 if victim == "HTTP process" else -signal.SIGKILL)
    wait_for_the_end_of(pids)
    assert_port_is_free(service)
    answers = {one.result() for one in waiting}
    assert (503, "engine-failed") in answers
    assert answers <= {(503, "engine-failed"), "lost"}
    if victim == "engine process":  # every connection was with one of the two that could still answer
        assert answers == {(503, "engine-failed")}
        assert first.result() == (503, "engine-failed")
        assert re.search(r"HTTP process \d: refused in the last \d+ s: \d+ engine-failed", service.log)
    else:
        first.exception()
        for what in ("has ended by itself", "was ended by signal 9 (Killed)"):
            assert service.log.count(f"HTTP process 0 (pid {pids[0]}) {what}") == 1
        assert service.log.count(" ERROR ") == 2


def ask_or_lost(service):
    try:
        return ask(service, GOOD)
    except httpx.TransportError:
        return "lost"


@pytest.mark.parametrize("fault", ["broken", "batcher dies"])
def test_an_engine_that_breaks_ends_all_of_them(start_two_faulty, fault):
    service = start_two_faulty(batch_sizes="1")
    pids = service.children
    assert ask(service, bad(fault)) == (503, "engine-failed")
    assert service.process.wait(timeout=60) == 1
    assert service.log.count("the engine or its batcher died") == 1
    wait_for_the_end_of(pids)
    assert_port_is_free(service)


def test_a_hung_engine_does_not_keep_sigterm_from_ending_all_of_them(start_two_faulty, pool, tmp_path):
    service = start_two_faulty(drain_timeout_s=1)
    pids = service.children
    first = hang(service, pool, tmp_path)
    assert service.stop() == 0
    assert first.result()[0] == 503
    assert ": 1 engine-failed" in service.log
    wait_for_the_end_of(pids)


def test_a_process_that_does_not_end_is_killed_and_that_is_no_success(start):
    service = start(http_processes=2, drain_timeout_s=0.5, header_timeout_s=3600)
    pids = service.children
    os.kill(pids[0], signal.SIGSTOP)
    assert service.stop() == 1
    assert service.log.count(f"HTTP process 0 (pid {pids[0]}) does not end") == 1
    wait_for_the_end_of(pids)


def test_after_a_failure_nobody_waits_for_a_process_that_hangs(start):
    service = start(http_processes=2, drain_timeout_s=3600, stall_timeout_s=0.5, stall_exit_s=0.5)
    pids = service.children
    os.kill(pids[0], signal.SIGSTOP)
    assert service.process.wait(timeout=60) == 1
    for what in (": an HTTP process makes no progress", " does not end"):
        assert service.log.count(f"HTTP process 0 (pid {pids[0]}){what}") == 1
    wait_for_the_end_of(pids)
    assert_port_is_free(service)


def test_a_checkpoint_that_cannot_be_served_is_refused_in_one_line(start, tmp_path):
    service = start(wait=False, http_processes=2, weights=tmp_path / "none.safetensors")
    assert service.process.wait(timeout=120) == 1
    (error,) = [line for line in service.log.splitlines() if " ERROR " in line]
    assert "cannot serve" in error
    assert "Traceback" not in service.log
    assert_port_is_free(service)


def test_weights_change_under_load_without_a_gap(start, tmp_path, examples, checkpoints, expected):
    path = tmp_path / "current.safetensors"
    files = [one.read_bytes() for one in checkpoints]
    versions = list(expected)
    put(path, files[0])
    service = start(
        http_processes=2,
        weights=path,
        device="cpu",
        precision="float32",
        batch_sizes=",".join(map(str, BATCH_SIZES)),
        timeout_ms=120_000,
        max_queue_s=60,
    )
    clients = Clients(service, list(examples.values()))

    async def scenario():
        async with clients:
            await clients.wait_for(versions[0])
            for old, new in ((0, 1), (1, 0)):
                put(path, files[new])
                code, line = await reload(service)
                assert (code, line) == (0, f"version {versions[new]} serves in place of {versions[old]}")
                await clients.wait_for(versions[new])

    asyncio.run(scenario())
    for version, start_at, probabilities in clients.answers:
        offline = expected[version][start_at : start_at + len(probabilities)]
        assert np.abs(probabilities - offline).max() <= 1e-3
    assert service.metric('resnet_reloads_total{outcome="succeeded"}') == 2
    metrics = service.get("/metrics").text
    assert versions[0] in metrics
    assert versions[1] not in metrics
    assert service.stop() == 0
    assert "Traceback" not in service.log
