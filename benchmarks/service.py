"""The service as a whole, in the real process: time to ready, one client, 64 clients, and the whole test set over HTTP.

python -m benchmarks.service --data FOLDER
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.machine import FOLDER, write
from tests.process import ServiceProcess, service_process

PNG = {"content-type": "image/png"}
SECONDS = 10.0
ROUNDS = 5


async def load(url: str, picture: bytes, clients: int, seconds: float) -> dict[str, float]:
    """Closed loop: each client sends its next request when it has its answer."""
    times: list[float] = []
    until = time.perf_counter() + seconds
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as http:

        async def client() -> None:
            while (started := time.perf_counter()) < until:
                answer = await http.post("/predict", content=picture, headers=PNG)
                answer.raise_for_status()
                times.append(time.perf_counter() - started)

        await asyncio.gather(*(client() for _ in range(clients)))
    cuts = statistics.quantiles(times, n=100)
    return {
        "requests_per_s": round(len(times) / seconds, 1),
        "p50_ms": round(cuts[49] * 1e3, 2),
        "p99_ms": round(cuts[98] * 1e3, 2),
    }


def bad_input_times(service: ServiceProcess, picture: bytes) -> dict[str, Any]:
    """Seconds that each kind of bad input takes to be refused, and what it did to resident memory."""
    from tests.e2e.test_hostile import BAD

    with httpx.Client(base_url=service.url, timeout=60) as http:
        http.post("/predict", content=picture, headers=PNG)
        before = service.resident_bytes
        seconds = {}
        for name, (content, headers, _status, _code) in BAD.items():
            started = time.perf_counter()
            http.post("/predict", content=content, headers=headers)
            seconds[name] = round(time.perf_counter() - started, 4)
        started = time.perf_counter()
        http.post("/predict", files=[("file", picture)] * 1000)
        seconds["1000 images"] = round(time.perf_counter() - started, 4)
        return {"seconds": seconds, "resident_growth_mb": round((service.resident_bytes - before) / 2**20, 1)}


def main() -> None:
    """Run everything once; rounds of 1 and 64 clients alternate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of cifar-10-batches-py")
    data = parser.parse_args().data
    picture = (FOLDER.parent / "examples" / "cat.png").read_bytes()
    rounds: dict[str, list[dict[str, float]]] = {"1": [], "64": []}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        with service_process(Path(folder) / "serve.log") as service:
            service.wait_ready()
            ready_s = time.perf_counter() - started
            bad = bad_input_times(service, picture)
            for _ in range(ROUNDS):
                for clients in (1, 64):
                    rounds[str(clients)].append(asyncio.run(load(service.url, picture, clients, SECONDS)))
            batch = service.metric("resnet_batch_images_sum") / service.metric("resnet_batch_images_count")
            if (data / "cifar-10-batches-py").is_dir():
                command = [sys.executable, "-m", "app.cli", "evaluate", "--data", "cifar10", "--root", str(data)]
                command += ["--url", service.url, "--json", str(FOLDER / "evaluate_service.json")]
                subprocess.run(command, check=True)
            resident_mb = service.resident_bytes / 2**20
            exit_code = service.stop()
    medians = {
        clients: {key: statistics.median(one[key] for one in many) for key in many[0]}
        for clients, many in rounds.items()
    }
    write(
        "service_cpu.json",
        {
            "command": "python -m benchmarks.service",
            "ready_s": round(ready_s, 1),
            "exit_code_after_sigterm": exit_code,
            "clients_median": medians,
            "mean_batch_images": round(batch, 2),
            "resident_mb": round(resident_mb),
            "bad_input": bad,
            "rounds": rounds,
        },
    )


if __name__ == "__main__":
    main()
