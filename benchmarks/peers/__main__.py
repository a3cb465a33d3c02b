"""All contenders in interleaved rounds, one alive at a time: figures, table and chart.

python -m benchmarks.peers --engine null|eager|checkpoint

Fewer rounds than MIN_ROUNDS are a trial: RECORDS=folder keeps it apart from the records that the pages show.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks import processes
from benchmarks.closed_loop import find_or_download_wrk, seconds_of_a_run
from benchmarks.peers import environments, report
from benchmarks.peers.contenders import CONTENDERS, DEFAULT_ENVIRONMENTS, OURS, Contender
from benchmarks.peers.engine import MAX_BATCH
from benchmarks.peers.measure import LoadGenerator
from benchmarks.peers.server import ContenderError, check, running
from benchmarks.records import MACHINES, RECORDS, describe_apart

CLIENTS = {"null": (1, 64), "eager": (1, 16, 64), "checkpoint": (1, 16, 64)}
MIN_ROUNDS = 5  # of a record that is shown
OPEN_LOOP_SHARE = 0.5  # of what the contender answers to the most clients in the same round


def parse() -> argparse.Namespace:
    """Return the command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=tuple(CLIENTS), required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement, at least")
    parser.add_argument("--clients", type=int, nargs="+", help="clients of the closed loops; by default the engine's")
    parser.add_argument("--only", nargs="+", choices=[one.name for one in CONTENDERS], help="leave the others out")
    parser.add_argument("--environments", type=Path, default=DEFAULT_ENVIRONMENTS, help="folder of the environments")
    parser.add_argument("--install-only", action="store_true", help="make the environments and stop")
    arguments = parser.parse_args()
    if arguments.rounds < MIN_ROUNDS and RECORDS in MACHINES.values() and not arguments.install_only:
        parser.error(f"fewer than {MIN_ROUNDS} rounds are a trial, not a record to show: RECORDS=folder keeps it apart")
    return arguments


def prepare(chosen: list[Contender], folder: Path) -> tuple[dict[str, Path], dict[str, dict[str, Any]]]:
    """Make the environments; return the python of each contender that can take part, and what is known of each."""
    pythons, known = {}, {}
    for contender in chosen:
        about: dict[str, Any] = {"title": contender.title, "settings": contender.settings, "versions": {}}
        reason = contender.missing
        if reason is None:
            try:
                python = environments.make(contender, folder)
                about["versions"] = environments.versions(contender, python)
                pythons[contender.name] = python
            except (subprocess.CalledProcessError, OSError) as error:
                reason = f"its environment could not be made: {error}"
        if reason is not None:
            about["left_out"] = reason
            print(f"{contender.title} is left out: {reason}", flush=True)
        known[contender.name] = about
    return pythons, known


@dataclass
class TurnPlan:
    """The measurement of one contender in one round, of whatever order."""

    engine: str
    clients: list[int]
    seconds: int
    loader: LoadGenerator

    def turn(self, contender: Contender, python: Path, number: int) -> dict[str, Any]:
        """Start a contender, check it, load it in every way, end it; what goes wrong is part of the record."""
        turn: dict[str, Any] = {}
        started = time.monotonic()
        try:
            with running(contender, python, self.engine) as server:
                turn["ready_s"] = round(time.monotonic() - started, 1)
                turn["pictures_checked"] = check(server, self.engine, contender.tolerance)
                for clients in self.clients:
                    warm = self.loader.closed(server, clients, contender.warm_up_s)
                    seconds = seconds_of_a_run(self.seconds, clients, warm["requests_per_s"])
                    turn[f"clients_{clients}"] = self.loader.closed(server, clients, seconds)
                # Each at its own rate: one of ours would be more than others can do, and say nothing but that.
                rate = round(OPEN_LOOP_SHARE * turn[f"clients_{self.clients[-1]}"]["requests_per_s"], 1)
                self.loader.open(server, rate, contender.warm_up_s, seed=number)
                opened = self.loader.open(server, rate, self.seconds, seed=number)
                turn["open_loop"] = {"offered_per_s": rate, **opened}
        except (ContenderError, httpx.HTTPError) as error:
            turn["error"] = str(error) or type(error).__name__
        return turn


def rotated(contenders: list[Contender], number: int) -> list[Contender]:
    """Return them in a round's order: each begins with the next one, since a machine may slow down within a round."""
    first = number % len(contenders)
    return contenders[first:] + contenders[:first]


def main() -> None:
    """Measure, and write the record after every round."""
    arguments = parse()
    arguments.clients = sorted(arguments.clients or CLIENTS[arguments.engine])
    processes.adopt_orphans()
    able = [one for one in CONTENDERS if arguments.engine in one.engines]
    chosen = [one for one in able if arguments.only is None or one.name in (OURS, *arguments.only)]
    folder = arguments.environments.resolve()
    pythons, known = prepare(chosen, folder)
    loader = LoadGenerator(find_or_download_wrk(folder))
    if arguments.install_only:
        return
    record: dict[str, Any] = {
        "machine": describe_apart(),
        "command": "python -m benchmarks.peers " + " ".join(sys.argv[1:]),
        "engine": arguments.engine,
        "seconds": arguments.seconds,
        "clients": arguments.clients,
        "peers_max_batch": MAX_BATCH,
        "open_loop_share": OPEN_LOOP_SHARE,
        "open_loop_warmed_up": True,
        "closed_loop": loader.closed_loop,
        "contenders": known,
        "rounds": [],
    }
    taking_part = [one for one in chosen if one.name in pythons]
    plan = TurnPlan(arguments.engine, arguments.clients, arguments.seconds, loader)
    for number in range(arguments.rounds):
        turns: dict[str, Any] = {}
        for contender in rotated(taking_part, number):
            turns[contender.name] = plan.turn(contender, pythons[contender.name], number)
            print(number, contender.name, turns[contender.name], flush=True)
        record["rounds"].append(turns)
        report.write(record)
    report.publish()


if __name__ == "__main__":
    main()
