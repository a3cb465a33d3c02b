"""Resident memory of the real process, with the network, over 100,000 requests in every form, bad ones among them.

Every request goes all the way, because memory is kept in different places: by the C library for each thread, by the
engine for each batch size, by what makes the answers for each error. On two cores it takes some ten minutes. All of it
is on the CPU, also where there is a GPU.

python -m benchmarks.memory
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np

from app.settings import Settings
from benchmarks.closed_loop import PICTURES
from benchmarks.large_requests import forms
from benchmarks.load import post
from benchmarks.pace import examples
from benchmarks.records import write
from benchmarks.sender import ScheduledSender
from tests.process import ServiceProcess, service_process

REQUESTS = 100_000
STEP = 10_000
CLIENTS = 64

# The process that the service is compared with: its weights are copies in memory, rather than the file mapped.
INTERPRETER = """
import sys, torch
from safetensors.torch import load_file
weights = {name: tensor.clone() for name, tensor in load_file(sys.argv[1]).items()}
print(open("/proc/self/status").read().partition("VmRSS:")[2].split()[0])
"""


def interpreter_mb(weights: Path) -> float:
    """Return the resident megabytes of an interpreter that has only imported torch and loaded the weights."""
    command = [sys.executable, "-c", INTERPRETER, str(weights)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024


def mixture() -> list[bytes]:
    """Return requests to be sent in turn: mostly one image, in every form, and bad ones of several kinds."""
    png = {"content-type": "image/png"}
    pictures = [post("/predict", path.read_bytes(), png) for path in PICTURES]
    three = forms(examples(3))
    bad = [
        post("/predict", b"no picture", png),
        post("/predict", b"\x93NUMPY", {"content-type": "application/x-npy"}),
        post("/predict", b'{"images": ["%%%"]}', {"content-type": "application/json"}),
        post("/nowhere", b"", {}),
    ]
    return [*pictures * 5, *three.values(), *bad]


def send(port: int, requests: list[bytes], total: int) -> Counter[int]:
    """Send `total` requests, in turn, from CLIENTS clients in closed loop; return how often each status came."""
    sender = ScheduledSender(port, requests, np.zeros(total), most=CLIENTS)  # all due at once: as clients become free
    sender.send()
    return Counter(sender.finish().status.tolist())


def resident_mb(service: ServiceProcess) -> float:
    """Return the service's resident megabytes."""
    return round(service.resident_bytes / 2**20, 1)


def main() -> None:
    """Send the requests in steps, and write the resident size after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="a multiple of 10,000 [%(default)s]")
    total = parser.parse_args().requests
    requests = mixture()
    statuses: Counter[int] = Counter()
    after: dict[int, float] = {}
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(Path(folder) / "log", device="cpu", timeout_ms=60_000, max_queue_s=60) as service,
    ):
        service.wait_ready()
        ready_mb = resident_mb(service)
        for sent in range(STEP, total + 1, STEP):
            statuses += send(service.port, requests, STEP)
            after[sent] = resident_mb(service)
            print(sent, after[sent], json.dumps(statuses), flush=True)
        open_files = service.open_files
    interpreter = interpreter_mb(Settings().weights)
    write(
        "memory.json",
        {
            "command": "python -m benchmarks.memory",
            "resident_mb": {
                "interpreter with torch and the weights": round(interpreter, 1),
                "service when ready": ready_mb,
                **{f"service after {sent} requests": mb for sent, mb in after.items()},
            },
            "last_over_first_step": round(after[max(after)] / after[STEP], 4),
            "above_the_interpreter_mb": round(after[max(after)] - interpreter, 1),
            "open_files": open_files,
            "statuses": dict(sorted(statuses.items())),
        },
    )


if __name__ == "__main__":
    main()
