"""The process that converts a checkpoint, beside the real one: it never outlives it, and its end is one line."""

import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.fifos import read_by_somebody
from tests.process import WEIGHTS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="processes are looked for in /proc"),
]


@pytest.fixture
def endless(tmp_path):
    """A checkpoint whose reading never ends."""
    path = tmp_path / "endless.safetensors"
    os.mkfifo(path)
    return path


def children_of(process):
    """The processes that a process has started, from whatever thread."""
    tasks = Path(f"/proc/{process.pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGKILL, -signal.SIGKILL)])
def test_it_ends_with_the_process_that_waits_for_it(start, endless, number, code):
    service = start(wait=False, device="cpu", weights=endless)
    with read_by_somebody(endless) as fifo:
        service.wait_logged("Uvicorn running on")
        assert httpx.get(f"{service.url}/livez").status_code == 200
        assert httpx.get(f"{service.url}/readyz").text == "the model is loading\n"
        assert service.stop(number) == code
        assert fifo.is_left()


def test_where_it_is_killed_the_service_says_so_and_ends(start, endless):
    service = start(wait=False, device="cpu", weights=endless)
    with read_by_somebody(endless):
        (child,) = children_of(service.process)
        os.kill(child, signal.SIGKILL)
        assert service.process.wait(60) == 1
    assert "cannot serve: the process that converts the checkpoint has ended with signal 9" in service.log
    assert "Traceback" not in service.log


def test_where_it_is_killed_at_a_reload_the_old_weights_serve_on(start, tmp_path, examples):
    weights = tmp_path / "checkpoint.safetensors"
    weights.write_bytes(WEIGHTS.read_bytes())
    service = start(device="cpu", weights=weights)
    weights.unlink()
    os.mkfifo(weights)
    service.process.send_signal(signal.SIGHUP)
    with read_by_somebody(weights):
        (child,) = children_of(service.process)
        os.kill(child, signal.SIGKILL)
        service.wait_logged("reload refused: the process that converts the checkpoint has ended with signal 9")
    ask = {"content": examples["cat"], "headers": {"content-type": "image/png"}}
    assert httpx.post(f"{service.url}/predict", timeout=60, **ask).json()["predictions"][0]["label"] == "cat"
    assert service.stop() == 0
    assert "Traceback" not in service.log
