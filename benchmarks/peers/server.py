"""One contender, running: started in a folder of its own, asked until it answers, checked, and ended for good."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from app.settings import SHIPPED_WEIGHTS
from benchmarks import processes
from benchmarks.closed_loop import PICTURES
from benchmarks.peers.contenders import Contender
from benchmarks.peers.engine import ENGINE_VARIABLE, NULL_PROBABILITIES, PORT_VARIABLE
from benchmarks.ports import free_port
from benchmarks.records import FOLDER
from model import checkpoint
from model.pictures.codec import encode_png

ROOT = FOLDER.parent
PNG = {"content-type": "image/png"}
START_LIMIT_S = 180
STOP_LIMIT_S = 20


class ContenderError(RuntimeError):
    """A contender does not start, or does not answer as it must; the text ends with its log."""


@dataclass
class RunningServer:
    """A started contender; `url` is where pictures are sent to."""

    process: subprocess.Popen[bytes]
    port: int
    url: str

    def processes(self) -> list[int]:
        """Return the server's processes at this moment, while this process has no other children than the server.

        Those that a server has cut loose are found as well: they are children of this process then (adopt_orphans).
        """
        return [one for one in processes.tree(os.getpid()) if one != os.getpid()]


@contextmanager
def running(contender: Contender, python: Path, engine: str) -> Iterator[RunningServer]:
    """Start a contender, wait until it answers, and end it and all its processes. Raises ContenderError."""
    folder = Path(tempfile.mkdtemp(prefix="peer"))  # a short path: Ray's sockets are in it
    log_path = folder / "log"
    port = free_port()
    hidden = ("RESNET_", "OMP_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    # The same device for all: some servers hide a GPU from their workers unless they are asked for it.
    environment |= {ENGINE_VARIABLE: engine, PORT_VARIABLE: str(port), "RESNET_DEVICE": "cpu"}
    environment |= {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder), "PATH": f"{python.parent}:{environment['PATH']}"}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [python, "-m", f"benchmarks.peers.{contender.module}"], env=environment, cwd=folder, stdout=log, stderr=log
        )
    server = RunningServer(process, port, f"http://127.0.0.1:{port}{contender.path}")
    try:
        _wait_ready(server)
        yield server
    except ContenderError as error:
        lines = log_path.read_text(errors="replace").splitlines()
        raise ContenderError("\n".join([f"{contender.title}: {error}", *lines[-20:]])) from None
    finally:
        everything = server.processes()
        process.send_signal(signal.SIGTERM)
        processes.end([*everything, *server.processes()], STOP_LIMIT_S)
        process.poll()
        shutil.rmtree(folder, ignore_errors=True)


def _wait_ready(server: RunningServer) -> None:
    """Ask for a prediction until it is answered."""
    picture = PICTURES[0].read_bytes()
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if server.process.poll() is not None:
            raise ContenderError(f"exited with {server.process.returncode}")
        try:
            if httpx.post(server.url, content=picture, headers=PNG, timeout=10).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise ContenderError(f"not ready in {START_LIMIT_S} s")


def check(server: RunningServer, engine: str, tolerance: float | None = None) -> int:
    """Compare answers with what they must be; return how many pictures were asked.

    The checkpoint's: the labels of the examples, and the probabilities that training measured on the self-test images,
    within `tolerance` or what the checkpoint allows.
    The null engine's: its own; and a file that is no picture must be refused, which shows that pictures are decoded.
    Raises ContenderError.
    """
    # On a connection of its own: some servers close it after an error.
    if httpx.post(server.url, content=b"no picture", headers=PNG, timeout=30).status_code < 400:
        raise ContenderError("answers what is no picture")
    with httpx.Client(timeout=30, headers=PNG) as http:

        def ask(body: bytes) -> tuple[str, list[float]]:
            answer = http.post(server.url, content=body)
            if answer.status_code != 200:
                raise ContenderError(f"status {answer.status_code}: {answer.text[:200]}")
            classes = answer.json()["predictions"][0]["probabilities"]
            return classes[0]["label"], [one["probability"] for one in sorted(classes, key=lambda one: one["index"])]

        answers = [ask(path.read_bytes()) for path in PICTURES]
        if engine == "null":
            if any(probabilities != list(NULL_PROBABILITIES) for _, probabilities in answers):
                raise ContenderError("answers other than the null engine's")
            return len(answers)
        wrong = [path.stem for path, (label, _) in zip(PICTURES, answers, strict=True) if label != path.stem]
        if wrong:
            raise ContenderError(f"wrong class for {', '.join(wrong)}")
        source = checkpoint.load(SHIPPED_WEIGHTS)
        measured = [ask(encode_png(image))[1] for image in source.self_test_images]
        worst = float(np.abs(np.array(measured) - source.self_test_probabilities).max())
        if not worst <= (tolerance or source.metadata.self_test_tolerance):
            raise ContenderError(f"probabilities are off by {worst:.3f}")
        return len(answers) + len(measured)
