"""Start, refuse to start, drain: the life of the real process."""

import asyncio
import os
import re
import signal
import socket

import pytest

from app.release import release
from app.settings import Settings
from model import checkpoint
from tests.drains import DRAIN_DELAY_S, Load, drain_under_load
from tests.process import WEIGHTS

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_sigterm_under_load_loses_no_accepted_request_and_exits_0(start, examples, rounds):
    for _ in range(rounds):
        drain_under_load(start(drain_delay_s=DRAIN_DELAY_S), examples["cat"])


@pytest.mark.parametrize("rounds", [1, pytest.param(20, marks=pytest.mark.chaos)])
def test_a_second_sigterm_under_load_ends_it_at_once(start, examples, rounds):
    async def scenario(service, load):
        async with load.running():
            for _ in range(2):
                service.process.send_signal(signal.SIGTERM)
                await asyncio.to_thread(service.wait_logged, "draining")
            # Without the second signal it would go on serving for an hour.
            assert await asyncio.to_thread(service.process.wait, 60) == 128 + signal.SIGTERM

    for _ in range(rounds):
        service = start(drain_delay_s=3600)
        load = Load(service, examples["cat"])
        asyncio.run(scenario(service, load))
        assert set(load.answered) == {200}
        assert "Traceback" not in service.log


def test_sigint_drains_as_well(start):
    service = start()
    assert service.stop(signal.SIGINT) == 0
    assert "draining" in service.log


def test_sigterm_while_starting_exits_0(start):
    service = start(wait=False, drain_delay_s=3600)  # nobody was told that it is ready
    service.wait_logged("listening on")
    assert service.stop() == 0


@pytest.mark.parametrize("http_processes", [1, 2])
@pytest.mark.parametrize("taken", ["port", "admin_port"])
def test_a_port_that_is_taken_is_told_before_anything_is_loaded(start, taken, http_processes):
    with socket.create_server(("127.0.0.1", 0)) as other:
        number = other.getsockname()[1]
        service = start(wait=False, http_processes=http_processes, **{taken: number})
        assert service.process.wait(timeout=60) == 1
    assert service.log.splitlines()[-1] == f"resnet: error: port {number} at 127.0.0.1: Address already in use"
    assert "self-test" not in service.log
    assert "Traceback" not in service.log


def test_settings_are_logged_on_one_line_without_the_key(start):
    service = start(wait=False, api_key="hunter2", revision="0a1b2c3")
    service.wait_logged("listening on")
    line = service.log.splitlines()[0]
    assert f"resnet {release()} (revision 0a1b2c3), settings: " in line
    logged = dict(re.findall(r"(\w+)=(\S*)", line))
    assert logged.keys() == Settings.model_fields.keys()
    assert logged["max_queue_images"] == "1024"
    assert "hunter2" not in service.log
    assert "no such settings" not in service.log


@pytest.mark.parametrize("http_processes", [1, 2])
def test_sigusr1_shows_what_all_threads_are_at_and_ends_nothing(start, http_processes):
    service = start(http_processes=http_processes)
    pids = [service.process.pid] if http_processes == 1 else [service.process.pid, service.children[0]]
    for count, pid in enumerate(pids, 1):
        os.kill(pid, signal.SIGUSR1)
        service.wait_logged(" in main\n", times=count)
    assert "(most recent call first)" in service.log
    assert service.get("/readyz").status_code == 200
    assert service.stop() == 0


def test_a_native_crash_leaves_the_stacks(start):
    service = start(wait=False)
    service.wait_logged("listening on")
    assert service.stop(signal.SIGSEGV) == -signal.SIGSEGV
    assert "Fatal Python error: Segmentation fault\n" in service.log
    assert re.search(r'^  File ".*app/commands/serve.py", line \d+ in run$', service.log, re.M)


def test_a_checkpoint_that_cannot_be_trusted_is_refused_in_one_line(start, tmp_path):
    """All digests are right, but the mean is another than the network was trained with."""
    path = tmp_path / "bad.safetensors"
    source = checkpoint.load(WEIGHTS)
    metadata = source.metadata.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    checkpoint.save(path, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)
    service = start(wait=False, weights=path)
    assert service.process.wait(timeout=120) == 1
    errors = [line for line in service.log.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert "cannot serve" in errors[0]
    assert "self-test failed" in errors[0]
    assert "Traceback" not in service.log
    assert " ready after" not in service.log
