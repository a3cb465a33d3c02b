"""What waiting for clients that come back at once gains: the service with it and without it, in turns.

Both stand ready all the time; the one that is not loaded takes no processor. All of it is on the CPU, also where there
is a GPU. See app/batching/returning_clients.py.

python -m benchmarks.returning_clients
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from app.batching import returning_clients
from app.launch import create_service, serve
from app.logs import set_up_logging
from app.settings import Settings
from benchmarks import closed_loop
from benchmarks.records import write
from benchmarks.service import one_round
from benchmarks.turns import Turn, order_of, rate_ratios
from tests.process import ServiceProcess, service_process

CLIENTS = (1, 2, 4, 8, 16, 32, 64)
# Both services have the same sizes: measured by each for itself, they would differ by chance.
BATCH_SIZES = "1,2,3,4,5,6,7,8,10,12,14,16,20,24,28,32,40,48,56,64"
MORE_THAN_ALL = 2.0  # a share of returning clients that is never reached
WARM_UP_S = 1
SECONDS = 6  # of a turn


def parse() -> argparse.Namespace:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", default=["auto", "int8"], help="those of the service [auto int8]")
    parser.add_argument("--serve-without", action="store_true", help="be the service that does not wait for clients")
    return parser.parse_args()


def serve_without() -> None:
    """Serve until a signal ends it, without waiting for clients."""
    returning_clients.MIN_RETURN_SHARE = MORE_THAN_ALL
    settings = Settings()
    set_up_logging(settings.log_level, settings.log_format)
    os._exit(serve(create_service(settings)))


def compare(wrk: list[str] | None, with_it: ServiceProcess, without: ServiceProcess, rounds: int) -> dict[str, Any]:
    """Load both in turns; return by number of clients the medians, the ratio of each round, and the rounds."""
    both = {"with": with_it, "without": without}
    figures: dict[str, Any] = {}
    for clients in CLIENTS:
        turns: list[Turn] = []
        for number in range(rounds):
            turns.append({name: one_round(wrk, both[name], clients, SECONDS) for name in order_of(both, number)})
        rates = {name: [turn[name]["requests_per_s"] for turn in turns] for name in both}
        ratios = rate_ratios(turns, "with", "without")
        figures[str(clients)] = {
            **{name: statistics.median(several) for name, several in rates.items()},
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            "rounds": turns,
        }
        print(clients, figures[str(clients)]["ratio"], ratios, flush=True)
    return figures


def main() -> None:
    """Measure each precision, and write the record."""
    arguments = parse()
    if arguments.serve_without:
        serve_without()
    wrk = closed_loop.find_or_download_wrk()
    found = {}
    for precision in arguments.precisions:
        settings = {"device": "cpu", "precision": precision, "batch_sizes": BATCH_SIZES}
        alone = ("benchmarks.returning_clients", "--serve-without")
        with (
            tempfile.TemporaryDirectory() as folder,
            service_process(Path(folder) / "with.log", **settings) as with_it,
            service_process(Path(folder) / "without.log", command=alone, **settings) as without,
        ):
            for service in (with_it, without):
                service.wait_ready()
                closed_loop.run(wrk, f"{service.url}/predict", 64, WARM_UP_S)
            found[precision] = compare(wrk, with_it, without, arguments.rounds)
    command = f"python -m benchmarks.returning_clients --rounds {arguments.rounds}"
    write("returning_clients.json", {"command": command, "load": closed_loop.name(wrk), "requests_per_s": found})


if __name__ == "__main__":
    main()
