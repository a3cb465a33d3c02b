"""The service under mixed traffic for a long time: nothing may be lost, wrong, or left behind.

python -m benchmarks.soak --minutes 30

Good, bad, slow and leaving clients, in cycles of two minutes. In the middle of each, the checkpoint file is exchanged
for another one and reloaded; halfway through the run, SIGTERM ends the process and a new one takes over the port. After
each cycle the clients pause, and what the process holds at rest is recorded: resident memory, open files, threads,
tasks. After a process's last cycle none of them may exceed its value after the first one by more than GROWTH.
Writes benchmarks/reliability/soak.json and soak.png; the exit code is 1 if a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from app.engine import load_engine
from app.imaging import decode
from app.settings import SHIPPED_WEIGHTS, Settings
from benchmarks.closed_loop import PICTURES
from benchmarks.records import RECORDS, write
from benchmarks.soak_figure import draw
from benchmarks.traffic import Traffic
from model.pictures.files import SERVED_PIXELS
from tests.checkpoints import put, write_turned
from tests.conftest import encode, noise
from tests.pictures import FORMATS, KINDS, draw_picture
from tests.process import ServiceProcess, service_process

GROWTH = 0.03
CYCLE_S = 120.0
SAMPLE_S = 5.0
SETTLE_S = 60.0
RELOAD_S = 300.0  # only so that a reload that never ends cannot hang the soak
HELD = ("resident_mb", "open_files", "threads", "tasks")
# Deadline and queue are so long that nothing is refused even on a busy machine: the soak is about accepted requests.
# With drain_delay_s, clients move on while the service drains.
SETTINGS = {"precision": "float32", "timeout_ms": 120_000, "max_queue_s": 120, "drain_delay_s": 1}

Held = dict[str, float]


def pictures() -> list[bytes]:
    """Return picture files of all formats, from tiny ones to photos that are decoded in threads."""
    examples = [path.read_bytes() for path in PICTURES]
    drawn = [encode(draw_picture(kind, number), name) for kind in KINDS for number, (_, name) in enumerate(FORMATS)]
    return [*examples, *drawn, encode(noise(800, 600), "JPEG"), encode(noise(300, 500), "WEBP")]


def offline_answers(paths: list[Path], files: list[bytes]) -> dict[str, NDArray[np.float32]]:
    """Return each checkpoint's probabilities by version, float32 (files, classes), computed a picture at a time."""
    answers = {}
    for path in paths:
        engine = load_engine(Settings(weights=path, device="cpu", precision="float32", batch_sizes=(1,)))
        size, version = engine.card["input_size"], engine.card["version"]
        answers[version] = np.concatenate([engine.run(decode(file, size, SERVED_PIXELS)[None]) for file in files])
    return answers


def held(service: ServiceProcess) -> Held:
    """Return what the process holds now. The task that answers this request is counted, its connection is not."""
    return {
        "resident_mb": round(service.resident_bytes / 2**20, 1),
        "open_files": service.open_files,
        "threads": len(list(Path(f"/proc/{service.process.pid}/task").iterdir())),
        "tasks": service.metric("resnet_tasks"),
    }


def server_errors(service: ServiceProcess) -> list[str]:
    """Return the lines of /metrics that count predictions answered with 500 and above."""
    lines = service.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith('resnet_requests_total{route="/predict",status="5')]


async def at_rest(service: ServiceProcess) -> Held:
    """Wait until files, threads and tasks have not changed for four seconds, and return what is held then.

    A service that has nothing to do gives memory back after a second.
    """
    until = time.monotonic() + SETTLE_S
    before: list[list[float]] = []
    while True:
        now = await asyncio.to_thread(held, service)
        before = [*before[-7:], [now[name] for name in HELD[1:]]]
        if (len(before) == 8 and all(one == before[0] for one in before)) or time.monotonic() > until:
            return now
        await asyncio.sleep(0.5)


class Soak:
    """One run: the service, its traffic, and the records of both. `folder` gets its logs and its checkpoint file."""

    def __init__(self, folder: Path, cycle_s: float, cycles: int, growth: float = GROWTH) -> None:
        self.folder, self.cycle_s, self.cycles, self.growth = folder, cycle_s, cycles, growth
        self.weights = folder / "current.safetensors"
        paths = [SHIPPED_WEIGHTS, write_turned(folder / "turned.safetensors")]
        self.files = [path.read_bytes() for path in paths]
        put(self.weights, self.files[0])
        images = pictures()
        self.expected: Mapping[str, NDArray[np.float32]] = offline_answers(paths, images)
        self.stack = ExitStack()
        self.service = self._start(None)
        self.traffic = Traffic(self.service.port, images, self.expected)
        self.problems: list[str] = []
        self.lives: list[list[Held]] = [[]]
        self.samples: list[Held] = []
        self.samples_missed = 0
        self.watchable = asyncio.Lock()  # held while there is no process to sample
        self.events: list[dict[str, Any]] = []
        self.reloads = 0
        self.began = time.monotonic()

    def _start(self, port: int | None) -> ServiceProcess:
        log = self.folder / f"serve{port or ''}.log"
        return self.stack.enter_context(service_process(log, port=port, weights=self.weights, **SETTINGS))

    async def run(self) -> dict[str, Any]:
        """Run all cycles and return the report."""
        try:
            await asyncio.to_thread(self.service.wait_ready)
            self.began = time.monotonic()
            sampling = asyncio.create_task(self._sample())
            for cycle in range(self.cycles):
                async with self.traffic.running():
                    await asyncio.sleep(self.cycle_s / 3)
                    if cycle == self.cycles // 2:
                        await self._restart()
                    await asyncio.sleep(self.cycle_s / 3)
                    await self._reload()
                    await asyncio.sleep(self.cycle_s / 3)
                rest = await at_rest(self.service)
                self.problems += await asyncio.to_thread(server_errors, self.service)
                self.lives[-1].append(rest)
                print(
                    f"cycle {cycle + 1} of {self.cycles}: {rest}, {len(self.traffic.tally.problems)} problems",
                    flush=True,
                )
            sampling.cancel()
            await self._stop()
        finally:
            self.stack.close()
        return self._report()

    async def _reload(self) -> None:
        """Exchange the file, send SIGHUP, and wait until the other version serves."""
        self.reloads += 1
        self._note("reload")
        put(self.weights, self.files[self.reloads % 2])
        version = list(self.expected)[self.reloads % 2]
        self.service.process.send_signal(signal.SIGHUP)
        until = time.monotonic() + RELOAD_S
        async with httpx.AsyncClient(base_url=self.service.url, timeout=60) as http:
            while (await http.get("/health")).json()["model"]["version"] != version:
                if time.monotonic() > until:
                    self.problems.append(f"reload {self.reloads}: {version} does not serve after {RELOAD_S:.0f} s")
                    return
                await asyncio.sleep(0.1)

    async def _restart(self) -> None:
        """End the process by SIGTERM amid the traffic, and start another one on the same port."""
        self._note("SIGTERM")
        async with self.watchable:
            await self._stop()
            self.traffic.open.clear()
            self.service = self._start(self.service.port)
            self.lives.append([])
            await asyncio.to_thread(self.service.wait_ready)
        self._note("ready again")
        self.traffic.open.set()

    async def _stop(self) -> None:
        code = await asyncio.to_thread(self.service.stop)
        if code != 0:
            self.problems.append(f"SIGTERM: exit code {code}")
        bad = [line for line in self.service.log.splitlines() if " ERROR " in line or "Traceback" in line]
        self.problems += [f"log: {line}" for line in bad]

    def _note(self, what: str) -> None:
        self.events.append({"seconds": round(time.monotonic() - self.began, 1), "event": what})

    async def _sample(self) -> None:
        while True:
            async with self.watchable:
                seconds = round(time.monotonic() - self.began, 1)
                try:
                    self.samples.append({"seconds": seconds, **await asyncio.to_thread(held, self.service)})
                except httpx.TimeoutException:  # a machine busy with something else
                    self.samples_missed += 1
            await asyncio.sleep(SAMPLE_S)

    def _report(self) -> dict[str, Any]:
        tally = self.traffic.tally
        lives = []
        for number, life in enumerate(self.lives, 1):
            growth = {name: round(life[-1][name] / life[0][name] - 1, 4) for name in HELD}
            lives.append({"growth": growth, "at_rest": life})
            grown = [f"{name} by {share:.1%}" for name, share in growth.items() if share > self.growth]
            self.problems += [f"process {number} grew: {one}" for one in grown]
        if set(tally.versions) != set(self.expected):
            self.problems.append(f"versions that answered: {sorted(tally.versions)}")
        problems = tally.problems + self.problems
        return {
            "command": "python -m benchmarks.soak",
            "cycles": self.cycles,
            "cycle_s": self.cycle_s,
            "most_growth": self.growth,
            "settings": SETTINGS,
            "reloads": self.reloads,
            "answers": dict(sorted(tally.answers.items())),
            "verified_images": tally.verified_images,
            "answers_by_version": dict(tally.versions),
            "largest_difference_from_offline": round(tally.largest_difference, 6),
            "problems": len(problems),
            "first_problems": problems[:20],
            "processes": lives,
            "events": self.events,
            "samples_missed": self.samples_missed,
            "samples": self.samples,
        }


def main() -> int:
    """Soak, write the report and its picture, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the whole run [%(default)s]")
    parser.add_argument("--cycle", type=float, default=CYCLE_S, help="seconds of a cycle [%(default)s]")
    arguments = parser.parse_args()
    cycles = max(4, round(arguments.minutes * 60 / arguments.cycle))
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(Soak(Path(folder), arguments.cycle, cycles).run())
    write("reliability/soak.json", report)
    draw(report, RECORDS / "reliability" / "soak.png")
    for problem in report["first_problems"]:
        print(f"soak: {problem}", file=sys.stderr)
    return 1 if report["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
