"""The real process: `resnet serve` with the shipped checkpoint, on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx

from benchmarks.ports import reserved_port
from tests.conftest import ROOT

WEIGHTS = ROOT / "weights" / "resnet18-cifar10.safetensors"
START_LIMIT_S = 120  # only so that a hanging process cannot hang the suite
ANSWER_LIMIT_S = 60  # the same: on a busy machine an answer takes longer than the 5 s that httpx waits by default


def in_environment(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


class ServiceProcess:
    def __init__(
        self,
        log_path: str | Path,
        command: Sequence[str] = ("app.cli", "serve"),
        max_open_files: int | None = None,
        port: int | None = None,
        **settings: Any,
    ) -> None:
        self._reserved = None if port else reserved_port()
        self.port: int = port or self._reserved.getsockname()[1]
        self.url = f"{'https' if 'tls_cert' in settings else 'http'}://127.0.0.1:{self.port}"
        self.probes_url = f"http://127.0.0.1:{settings['admin_port']}" if "admin_port" in settings else self.url
        self.log_path = Path(log_path)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RESNET_")}
        environment |= {f"RESNET_{name.upper()}": in_environment(value) for name, value in settings.items()}
        environment |= {"RESNET_PORT": str(self.port), "TMPDIR": str(self.log_path.parent)}
        self.environment = environment
        with self.log_path.open("wb") as log:
            words = [sys.executable, "-m", *command]
            if max_open_files:
                words = ["sh", "-c", f'ulimit -n {max_open_files} && exec "$@"', "sh", *words]
            self.process = subprocess.Popen(words, env=environment, cwd=ROOT, stdout=log, stderr=log)

    def wait_ready(self) -> Self:
        until = time.monotonic() + START_LIMIT_S
        while time.monotonic() < until:
            assert self.process.poll() is None, self.log
            try:
                if self.probe("/readyz").status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not ready in {START_LIMIT_S} s:\n{self.log}")

    def get(self, path: str, **options: Any) -> httpx.Response:
        """Ask the port that answers requests."""
        return httpx.get(f"{self.url}{path}", verify=False, timeout=ANSWER_LIMIT_S, **options)

    def probe(self, path: str) -> httpx.Response:
        """Ask the port that answers probes, which is the same unless there is one for them alone."""
        return httpx.get(f"{self.probes_url}{path}", verify=False, timeout=ANSWER_LIMIT_S)

    def wait_logged(self, text: str, times: int = 1) -> None:
        while self.log.count(text) < times:
            assert self.process.poll() is None, self.log
            time.sleep(0.01)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        """Kill the process if it still runs, and give its port up."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._reserved is not None:
            self._reserved.close()

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    @property
    def resident_bytes(self) -> int:
        return self._status_bytes("VmRSS")

    def forget_peak(self) -> None:
        """Let `peak_bytes` begin anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def peak_bytes(self) -> int:
        """The largest resident size since `forget_peak`, or since the start."""
        return self._status_bytes("VmHWM")

    def _status_bytes(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) * 1024

    @property
    def children(self) -> list[int]:
        """The ids of the HTTP processes, where there are several."""
        pid = self.process.pid
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    @property
    def open_files(self) -> int:
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def metric(self, name: str, default: float | None = None) -> float:
        """The value of one line of /metrics; `default` if it may not be there yet."""
        for line in self.probe("/metrics").text.splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        if default is None:
            raise KeyError(name)
        return default


@contextmanager
def service_process(log_path: str | Path, **options: Any) -> Iterator[ServiceProcess]:
    service = ServiceProcess(log_path, **options)
    try:
        yield service
    finally:
        service.end()
