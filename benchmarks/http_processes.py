"""What HTTP processes in front of an engine process cost and gain: requests/s, processor time and memory, in turns.

The engine answers at once, so that everything but the network is measured: HTTP, decoding, batching, and the messages
between the processes. Load comes from wrk on the same machine. Where processes and wrk want more cores than there are,
the processor time is the better figure.

python -m benchmarks.http_processes --processes 1 2
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import closed_loop, processes
from benchmarks.peers.engine import ENGINE_VARIABLE, PORT_VARIABLE
from benchmarks.ports import free_port
from benchmarks.records import write
from tests.process import service_process

WARM_UP_S = 1


def parse() -> argparse.Namespace:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="values of http_processes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5)
    parser.add_argument("--clients", type=int, default=64)
    return parser.parse_args()


def turn(wrk: list[str], count: int, clients: int, seconds: int) -> dict[str, Any]:
    """Start the service with `count` HTTP processes, load it, and return the figures of that time."""
    port = free_port()
    os.environ |= {ENGINE_VARIABLE: "null", PORT_VARIABLE: str(port)}
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(
            Path(folder) / "log", command=("benchmarks.peers.ours",), port=port, http_processes=count
        ) as service,
    ):
        service.wait_ready()
        url = f"{service.url}/predict"
        closed_loop.run(wrk, url, clients, WARM_UP_S)
        members = processes.tree(service.process.pid)
        before = [processes.cpu_seconds([one]) for one in members]
        result = closed_loop.run(wrk, url, clients, seconds)
        spent = [processes.cpu_seconds([one]) - then for one, then in zip(members, before, strict=True)]
        each_ms = [round(1e3 * one / result["requests"], 4) for one in spent]
        memory_mb = round(processes.memory_bytes(members) / 2**20)
        assert service.stop() == 0
    return result | {"cpu_ms_per_request": round(sum(each_ms), 4), "of_each": each_ms, "memory_mb": memory_mb}


def main() -> None:
    """Measure in turns, and write the record."""
    arguments = parse()
    wrk = closed_loop.find_or_download_wrk()
    if wrk is None:  # load from Python would be the limit
        raise SystemExit("there is no wrk")
    rounds = [
        {str(count): turn(wrk, count, arguments.clients, arguments.seconds) for count in arguments.processes}
        for _ in range(arguments.rounds)
    ]
    names = [str(count) for count in arguments.processes]
    figures = ("requests_per_s", "cpu_ms_per_request", "memory_mb")
    medians = {
        name: {figure: statistics.median(one[name][figure] for one in rounds) for figure in figures} for name in names
    }
    ratios = {
        name: {
            figure: [round(one[name][figure] / one[names[0]][figure], 3) for one in rounds] for figure in figures[:2]
        }
        for name in names[1:]
    }
    record = {
        "command": "python -m benchmarks.http_processes " + " ".join(sys.argv[1:]),
        "clients": arguments.clients,
        "seconds": arguments.seconds,
        "medians": medians,
        "ratios": ratios,
    }
    write("http_processes.json", {**record, "rounds": rounds})


if __name__ == "__main__":
    main()
