"""SIGHUP: a closed terminal ends the service that was started in it; any other one reloads, keys included."""

import hashlib
import os
import pty
import signal
import sys
import time

import pytest

from tests.conftest import ROOT
from tests.process import in_environment

pytestmark = pytest.mark.e2e


def test_service_ends_with_the_terminal_that_it_was_started_in(tmp_path, own_port, tuning):
    log = tmp_path / "log"
    log.touch()
    settings = {"port": own_port, "drain_delay_s": 1} | tuning
    environment = os.environ | {f"RESNET_{name.upper()}": in_environment(value) for name, value in settings.items()}
    child, terminal = pty.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY), 2)
        os.chdir(ROOT)
        os.execve(sys.executable, [sys.executable, "-m", "app.cli", "serve"], environment | {"TMPDIR": str(tmp_path)})
    try:
        wait_logged(child, log, "ready after")
        os.close(terminal)
        wait_logged(child, log, "SIGHUP: draining")
        os.kill(child, signal.SIGHUP)  # bash tells its jobs that it hangs up, and the kernel tells them again
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert log.read_text().count("draining") == 1


def wait_logged(child, log, text):
    while text not in log.read_text():
        assert os.waitpid(child, os.WNOHANG) == (0, 0), log.read_text()
        time.sleep(0.01)


def test_sighup_reads_the_keys_again(start, tmp_path):
    def line(name, key):
        return f"{name}:{hashlib.sha256(key.encode()).hexdigest()}\n"

    def status(service, key):
        answer = service.get("/model", headers={"Authorization": f"Bearer {key}"})
        return answer.status_code

    keys = tmp_path / "keys"
    keys.write_text(line("old", "first"))
    service = start(api_keys_file=keys)
    assert (status(service, "first"), status(service, "second")) == (200, 401)
    keys.write_text(line("new", "second"))
    service.process.send_signal(signal.SIGHUP)
    service.wait_logged("read 1 keys from")
    assert (status(service, "first"), status(service, "second")) == (401, 200)
    keys.write_text("nonsense\n")
    service.process.send_signal(signal.SIGHUP)
    service.wait_logged("the keys stay as they were")
    assert (status(service, "first"), status(service, "second")) == (401, 200)
