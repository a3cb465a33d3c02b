"""Where the service's own time goes: py-spy's samples of the event loop, with an engine that answers at once.

64 clients send the example pictures. The table has for each function the share of samples in which it is on the stack,
and the share in which it is at its top. Needs py-spy (extra `bench`). The load is wrk's if there is one.

python -m benchmarks.profile_http
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import closed_loop
from benchmarks.peers.engine import ENGINE_VARIABLE, PORT_VARIABLE
from benchmarks.ports import free_port
from benchmarks.records import RECORDS, cores_of
from model.hardware.machine import describe
from tests.process import service_process

CLIENTS = 64
SECONDS = 10
SAMPLES_PER_S = 500
SHOWN = 60
LINE = re.compile(r":\d+\)$")


def tabulate(folded: str) -> tuple[int, Counter[str], Counter[str]]:
    """Return the number of samples in folded stacks, and by function those with it on the stack, and at the top.

    Only threads that run the event loop count: others that wait for work look busy to py-spy.
    """
    total, within, at_top = 0, Counter[str](), Counter[str]()
    for line in folded.splitlines():
        stack, _, count = line.rpartition(" ")
        functions = [LINE.sub(")", frame) for frame in stack.split(";")]
        if not any(function.startswith("asyncio_run") for function in functions):
            continue
        total += int(count)
        at_top[functions[-1]] += int(count)
        for function in set(functions):
            within[function] += int(count)
    return total, within, at_top


def main() -> None:
    """Load the service, sample it, and write the table. Raises SystemExit if it cannot be sampled."""
    py_spy = Path(sys.executable).with_name("py-spy")
    if not py_spy.is_file():
        raise SystemExit(f"there is no {py_spy}: pip install -c constraints.txt -e '.[bench]'")
    RECORDS.mkdir(parents=True, exist_ok=True)  # before the measurement, which takes a while
    wrk = closed_loop.find_or_download_wrk()
    port = free_port()
    os.environ |= {ENGINE_VARIABLE: "null", PORT_VARIABLE: str(port)}
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples"
        with service_process(Path(folder) / "log", command=("benchmarks.peers.ours",), port=port) as service:
            service.wait_ready()
            url = f"{service.url}/predict"
            closed_loop.run(wrk, url, CLIENTS, 2)
            sample = [str(py_spy), "record", "--format", "raw", "--output", str(samples)]
            sample += ["--duration", str(SECONDS - 2), "--rate", str(SAMPLES_PER_S), "--pid", str(service.process.pid)]
            with subprocess.Popen(sample, stdout=subprocess.DEVNULL) as sampler:
                result = closed_loop.run(wrk, url, CLIENTS, SECONDS)
            if sampler.returncode:
                raise SystemExit(
                    f"py-spy ended with {sampler.returncode}. It has to be allowed to trace other processes: "
                    "CAP_SYS_PTRACE in a container, kernel.yama.ptrace_scope=0 or root elsewhere"
                )
        total, within, at_top = tabulate(samples.read_text())
    machine = describe()
    lines = [
        f"{CLIENTS} clients, an engine that answers at once, {result['requests_per_s']} requests/s while being sampled",
        f"{total} samples, {cores_of(machine)}, {machine['date']}",
        "",
        "within  at top  function",
        *(f"{n / total:6.1%}  {at_top[name] / total:6.1%}  {name}" for name, n in within.most_common(SHOWN)),
    ]
    text = "\n".join(lines) + "\n"
    (RECORDS / "profile_http.txt").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
