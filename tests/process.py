"""The real process: `resnet serve` with the shipped checkpoint, on a free port."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.conftest import ROOT

WEIGHTS = ROOT / "weights" / "resnet18-cifar10.safetensors"
START_LIMIT_S = 120  # only so that a hanging process cannot hang the suite


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def in_environment(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class ServiceProcess:
    def __init__(self, log_path, command=("app.cli", "serve"), max_open_files=None, port=None, **settings):
        self.port = port or free_port()
        self.url = f"{'https' if 'tls_cert' in settings else 'http'}://127.0.0.1:{self.port}"
        self.probes_url = f"http://127.0.0.1:{settings['admin_port']}" if "admin_port" in settings else self.url
        self.log_path = Path(log_path)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNET_")}
        environment |= {f"RESNET_{name.upper()}": in_environment(value) for name, value in settings.items()}
        environment |= {"RESNET_PORT": str(self.port), "TMPDIR": str(self.log_path.parent)}
        self.environment = environment
        with self.log_path.open("wb") as log:
            command = [sys.executable, "-m", *command]
            if max_open_files:
                command = ["sh", "-c", f'ulimit -n {max_open_files} && exec "$@"', "sh", *command]
            self.process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def wait_ready(self):
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log
            try:
                if httpx.get(f"{self.probes_url}/readyz", verify=False).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready in {START_LIMIT_S} s:\n{self.log}")

    def wait_logged(self, text):
        while text not in self.log:
            assert self.process.poll() is None, self.log
            time.sleep(0.01)

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    @property
    def log(self):
        return self.log_path.read_text()

    @property
    def resident_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def forget_peak(self):
        """Let `peak_bytes` begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def peak_bytes(self):
        """The largest resident size since `forget_peak`, or since the start."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    @property
    def open_files(self):
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def metric(self, name):
        """The value of one line of /metrics, 0 if it is not there yet."""
        for line in httpx.get(f"{self.probes_url}/metrics", verify=False).text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0


@contextmanager
def service_process(log_path, **options):
    service = ServiceProcess(log_path, **options)
    try:
        yield service
    finally:
        if service.process.poll() is None:
            service.process.kill()
        service.process.wait()
