"""What a batch in pieces gains or loses, alone and beside another program: services of each `split_batches` in turns.

One service computes batches in pieces (`true`), one all of them whole (`false`): app/backends/openvino_backend.py. They
are measured alone, then beside benchmarks/busy.py. Both stand ready all the time; the one that is not loaded takes no
processor. All of it is on the CPU, also where there is a GPU.

python -m benchmarks.neighbour
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from app.engine import load_engine
from app.settings import Settings
from benchmarks import busy, closed_loop, processes
from benchmarks.records import write
from benchmarks.service import one_round
from benchmarks.turns import Turn, order_of, rate_ratios
from model.hardware.cores import available_cores
from tests.process import ServiceProcess, service_process

CLIENTS = (8, 16, 64)
# Each service's settings, by its name in the record; the others are compared with the first one.
SPLIT_BATCHES = {"whole": {"split_batches": False}, "pieces": {"split_batches": True}}
SECONDS = 3  # of a turn
SETTLE_S = 2  # how long each service is loaded before the first turn, alone and again beside the neighbour


def parse() -> argparse.Namespace:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each service at each load [%(default)s]")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="seconds of a turn [%(default)s]")
    return parser.parse_args()


def compare(
    wrk: list[str] | None, services: Mapping[str, ServiceProcess], rounds: int, seconds: int
) -> dict[str, dict[str, Any]]:
    """Load the services in turns; return `figures_of` the rounds by number of clients."""
    for service in services.values():
        closed_loop.run(wrk, f"{service.url}/predict", CLIENTS[0], SETTLE_S)
    turns: dict[int, list[Turn]] = {clients: [] for clients in CLIENTS}
    for number in range(rounds):
        for clients in CLIENTS:
            order = order_of(services, number)
            turns[clients].append({name: one_round(wrk, services[name], clients, seconds) for name in order})
    return {str(clients): figures_of(many) for clients, many in turns.items()}


def figures_of(turns: list[Turn]) -> dict[str, Any]:
    """Return each service's median rate, its ratios to the first service's rate in each round, and their median.

    `turns` has what `one_round` found, by round and service, and is kept, too.
    """
    rates = {name: [turn[name]["requests_per_s"] for turn in turns] for name in turns[0]}
    first, *others = rates
    ratios = {name: rate_ratios(turns, name, first) for name in others}
    return {
        "requests_per_s": {name: statistics.median(many) for name, many in rates.items()},
        f"of_{first}": {name: statistics.median(many) for name, many in ratios.items()},
        "ratios": ratios,
        "rounds": turns,
    }


def beside_neighbour(
    wrk: list[str] | None, services: Mapping[str, ServiceProcess], rounds: int, seconds: int
) -> tuple[dict[str, dict[str, Any]], float]:
    """Return what `compare` does while the neighbour runs, and the part of a core that the neighbour had."""
    with busy.neighbour() as process:
        began = time.monotonic()
        figures = compare(wrk, services, rounds, seconds)
        return figures, round(processes.cpu_seconds([process]) / (time.monotonic() - began), 3)


def main() -> None:
    """Measure without the neighbour and with it, and write the record."""
    arguments = parse()
    if available_cores() < 2:
        raise SystemExit("on one core no pieces are computed side by side")
    wrk = closed_loop.find_or_download_wrk()
    # All with the same precision and batch sizes: measured by each for itself, they would differ by chance.
    engine = load_engine(Settings(device="cpu", runtime="openvino"))
    tuning = engine.tuning
    engine.close()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        services = {
            name: stack.enter_context(service_process(Path(folder) / f"{name}.log", device="cpu", **tuning, **split))
            for name, split in SPLIT_BATCHES.items()
        }
        for service in services.values():
            service.wait_ready()
        alone = compare(wrk, services, arguments.rounds, arguments.seconds)
        beside, cores = beside_neighbour(wrk, services, arguments.rounds, arguments.seconds)
    write(
        "neighbour.json",
        {
            "command": f"python -m benchmarks.neighbour --rounds {arguments.rounds} --seconds {arguments.seconds}",
            "load": closed_loop.name(wrk),
            "tuning": tuning,
            "neighbour": {"busy_ms": busy.BUSY_S * 1e3, "period_ms": busy.PERIOD_S * 1e3, "cores": cores},
            "alone": alone,
            "beside_neighbour": beside,
        },
    )


if __name__ == "__main__":
    main()
