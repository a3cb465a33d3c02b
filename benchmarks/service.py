"""The service as a whole, in the real process: time to ready, one client, 64 clients, and bad input.

The engine by itself is measured before and after each run: the service's share of its rate is the figure that holds on
other machines, too. The service gets the settings that the engine measured at its start, so that both compute in the
same way. All of it is on the CPU, also where there is a GPU.

python -m benchmarks.service
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from app.engine import load_engine
from app.settings import Settings
from benchmarks import closed_loop
from benchmarks.pace import PAUSE_S, best_batch, engine_rate, examples, median_ms, shares_of_engine_rate
from benchmarks.records import FOLDER, write
from tests.process import ServiceProcess, service_process

PNG = {"content-type": "image/png"}
SECONDS = {1: 4, 64: 8}
ROUNDS = 5


def one_round(wrk: list[str] | None, service: ServiceProcess, clients: int, seconds: int) -> dict[str, float]:
    """Load the service for a few seconds; return rate, latencies, and the mean number of images in a batch."""
    names = ("resnet_batch_images_sum", "resnet_batch_images_count")
    before = [service.metric(name) for name in names]
    result = closed_loop.run(wrk, f"{service.url}/predict", clients, seconds)
    del result["requests"]
    images, batches = (service.metric(name) - start for name, start in zip(names, before, strict=True))
    return {**result, "mean_batch_images": round(images / batches, 2)}


def added_ms(rounds: list[dict[str, float]], singles: list[list[float]]) -> list[float]:
    """Return by how many ms each round's lone client waited longer than the engine took for a batch of one.

    Both are medians; `singles` has the engine's, in ms, before and after each of the rounds.
    """
    return [
        round(one["p50_ms"] - (before + after) / 2, 3) for one, (before, after) in zip(rounds, singles, strict=True)
    ]


def seconds_to_ready(folder: Path, precision: str) -> float:
    """Return the seconds until a service is ready that measures its engine's best settings for itself."""
    started = time.perf_counter()
    with service_process(folder / "start.log", device="cpu", precision=precision) as service:
        service.wait_ready()
        return time.perf_counter() - started


def bad_input_times(service: ServiceProcess, picture: bytes) -> dict[str, Any]:
    """Return the seconds that each kind of bad input takes to be refused, and the growth of resident memory in MB."""
    from tests.bad_requests import BAD

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
    parser.add_argument("--precision", choices=("auto", "int8"), default="auto", help="of the service [%(default)s]")
    arguments = parser.parse_args()
    suffix = "" if arguments.precision == "auto" else f"_{arguments.precision}"
    picture = (FOLDER.parent / "examples" / "cat.png").read_bytes()
    runs: list[tuple[str, dict[str, float]]] = []
    singles: list[list[float]] = []
    engine = load_engine(Settings(device="cpu", precision=arguments.precision))
    images = examples(engine.batch_sizes[-1])
    wrk = closed_loop.find_or_download_wrk()
    with tempfile.TemporaryDirectory() as folder:
        ready_s = seconds_to_ready(Path(folder), arguments.precision)
        with service_process(Path(folder) / "serve.log", device="cpu", **engine.tuning) as service:
            service.wait_ready()
            bad = bad_input_times(service, picture)
            batch, sizes = best_batch(engine, images)
            paces = [engine_rate(engine, batch)]
            seconds = {
                clients: closed_loop.seconds_of_a_run(least, clients, paces[0]) for clients, least in SECONDS.items()
            }
            for clients in ROUNDS * tuple(SECONDS):
                # A lone client is compared with batches of one just before and after it: the machine's pace changes.
                alone = [median_ms(engine, images[:1])] if clients == 1 else []
                time.sleep(PAUSE_S)
                runs.append((str(clients), one_round(wrk, service, clients, seconds[clients])))
                time.sleep(PAUSE_S)
                if clients == 1:
                    alone.append(median_ms(engine, images[:1]))
                    singles.append(alone)
                paces.append(engine_rate(engine, batch))
            resident_mb = service.resident_bytes / 2**20
            exit_code = service.stop()
    rounds = {clients: [one for name, one in runs if name == clients] for clients in map(str, SECONDS)}
    shares = shares_of_engine_rate([(clients, one["requests_per_s"]) for clients, one in runs], paces)
    added = added_ms(rounds["1"], singles)
    medians = {
        clients: {key: statistics.median(one[key] for one in many) for key in many[0]}
        for clients, many in rounds.items()
    }
    write(
        f"service_cpu{suffix}.json",
        {
            "command": f"python -m benchmarks.service --precision {arguments.precision}",
            "load": closed_loop.name(wrk),
            "tuning": engine.tuning,
            "ready_s": round(ready_s, 1),
            "exit_code_after_sigterm": exit_code,
            "clients_median": medians,
            "engine_batch_size": len(batch),
            "engine_images_per_s_by_size": sizes,
            "engine_images_per_s": paces,
            "of_the_engine_64_clients_median": round(statistics.median(shares["64"]), 4),
            "of_the_engine_64_clients": shares["64"],
            "seconds": seconds,
            "engine_batch_of_one_ms": singles,
            "added_ms_1_client_median": round(statistics.median(added), 3),
            "added_ms_1_client": added,
            "resident_mb": round(resident_mb),
            "bad_input": bad,
            "rounds": rounds,
        },
    )


if __name__ == "__main__":
    main()
