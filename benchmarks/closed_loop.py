"""The load generator of closed loops, a process of its own: wrk, where there is one, else benchmarks/load.py.

Both send the same pictures in turn and print one line of JSON. wrk takes a fifth of the processor time, which the
service that is measured beside it then has.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import FOLDER

TIMEOUT_S = 30  # for an answer, after which wrk counts an error
# At the end of a run some half a batch is not answered, which is to count for little: where a server is slow, runs are
# longer, so that each client gets MIN_ANSWERS answers.
MIN_ANSWERS = 20
MAX_RUN_S = 30
PICTURES = sorted((FOLDER.parent / "examples").glob("*.png"))
WRK_FOLDER = FOLDER.parent / ".bench"


def find_or_download_wrk(folder: Path = WRK_FOLDER) -> list[str] | None:
    """Return the command that starts wrk: on the path, else Debian's package unpacked in `folder`, else None."""
    command = shutil.which("wrk")
    if command:
        return [command]
    environment = folder / "wrk"
    binary = environment / "usr" / "bin" / "wrk"
    if not binary.is_file() and shutil.which("apt-get"):
        environment.mkdir(parents=True, exist_ok=True)
        for package in ("wrk", "libluajit-5.1-2"):
            subprocess.run(["apt-get", "download", "-q", package], cwd=environment, check=False, capture_output=True)
        for archive in environment.glob("*.deb"):
            subprocess.run(["dpkg", "--extract", archive, environment], check=False, capture_output=True)
    libraries = os.pathsep.join(str(path) for path in (environment / "usr" / "lib").glob("*-linux-gnu"))
    start = ["env", f"LD_LIBRARY_PATH={libraries}", str(binary)]
    works = (
        binary.is_file() and "wrk" in subprocess.run([*start, "-v"], check=False, capture_output=True, text=True).stdout
    )
    return start if works else None


def seconds_of_a_run(least: int, clients: int, rate: float) -> int:
    """Return the seconds of a run of `clients` clients, at least `least`, for a server of `rate` answers a second."""
    return max(least, min(MAX_RUN_S, math.ceil(MIN_ANSWERS * clients / rate)))


def name(wrk: list[str] | None) -> str:
    """Return the load generator's name, for the record."""
    return "wrk" if wrk else "benchmarks/load.py"


def command(
    wrk: list[str] | None, url: str, clients: int, seconds: int, pictures: Sequence[Path] = PICTURES
) -> list[str]:
    """Return the command that loads `url` with clients that send their next picture when they have their answer."""
    files = [str(path) for path in pictures]
    if wrk is None:
        start = [sys.executable, "-m", "benchmarks.load", "--clients", str(clients), "--seconds", str(seconds)]
        return [*start, url, *files]
    start = [*wrk, "--threads", "1", "--connections", str(clients), "--duration", f"{seconds}s"]
    start += ["--timeout", f"{TIMEOUT_S}s", "--script", str(FOLDER / "wrk.lua")]
    return [*start, url, "--", "image/png", *files]


def run(
    wrk: list[str] | None, url: str, clients: int, seconds: int, pictures: Sequence[Path] = PICTURES
) -> dict[str, Any]:
    """Load `url`; return requests, requests_per_s, p50_ms, p99_ms and errors. Raises CalledProcessError."""
    done = subprocess.run(
        command(wrk, url, clients, seconds, pictures), cwd=FOLDER.parent, check=True, stdout=subprocess.PIPE, text=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
