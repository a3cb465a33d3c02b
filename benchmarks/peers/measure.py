"""Load on a running contender, and what it cost: rate, latencies, errors, processor time a request, memory."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from benchmarks import closed_loop, processes
from benchmarks.peers.server import ROOT, ContenderError, RunningServer

MEMORY_INTERVAL_S = 1.0
MIN_REQUESTS = 2


@dataclass(frozen=True)
class LoadGenerator:
    """Where load comes from, always in a process of its own; the pictures of examples/ are sent in turn.

    Closed loops: wrk if there is such a command, else benchmarks/load.py. Open loops: benchmarks/load.py.
    """

    wrk: list[str] | None

    @property
    def closed_loop(self) -> str:
        """The name of what makes the closed loops, for the record."""
        return closed_loop.name(self.wrk)

    def closed(self, server: RunningServer, clients: int, seconds: int) -> dict[str, Any]:
        """Load with clients that wait for their answers."""
        return _run(server, closed_loop.command(self.wrk, server.url, clients, seconds))

    def open(self, server: RunningServer, rate: float, seconds: int, seed: int) -> dict[str, Any]:
        """Load with Poisson arrivals that wait for nobody, `rate` a second."""
        command = [sys.executable, "-m", "benchmarks.load", "--rate", str(rate), "--seconds", str(seconds)]
        command += ["--seed", str(seed), server.url, *map(str, closed_loop.PICTURES)]
        return _run(server, command)


def _run(server: RunningServer, command: list[str]) -> dict[str, Any]:
    """Run a load generator and add the server's costs to what it prints as its last line."""
    members = server.processes()
    spent = processes.cpu_seconds(members)
    peak = processes.memory_bytes(members)
    generator = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    while True:
        try:
            output, _ = generator.communicate(timeout=MEMORY_INTERVAL_S)
            break
        except subprocess.TimeoutExpired:
            others = set(processes.tree(generator.pid))
            peak = max(peak, processes.memory_bytes([one for one in server.processes() if one not in others]))
    if generator.returncode:
        raise ContenderError(f"the load generator ended with {generator.returncode}")
    members = server.processes()
    spent = processes.cpu_seconds(members) - spent
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    requests = result.pop("requests")
    if requests < MIN_REQUESTS:
        raise ContenderError(f"{requests} good answers, {result['errors']} errors")
    return result | {
        "cpu_ms_per_request": round(1e3 * spent / requests, 3),
        "peak_memory_mb": round(max(peak, processes.memory_bytes(members)) / 2**20),
    }
