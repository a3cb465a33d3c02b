"""`resnet reload`, and clients that keep the answers of each version."""

import asyncio
import sys
from collections import Counter

import httpx
import numpy as np

from tests.conftest import ROOT

BATCH_SIZES = (1, 2, 4, 8)


async def reload(service):
    """`resnet reload`: its exit code and its line."""
    command = [sys.executable, "-m", "app.cli", "reload"]
    pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, env=service.environment, **pipes)
    line, _ = await process.communicate()
    return process.returncode, line.decode().strip()


class Clients:
    """Eight at once: six send one picture a request, two send all, which are more than a batch takes."""

    def __init__(self, service, pictures):
        self.service, self.pictures = service, pictures
        self.answers = []  # (version, index of the first picture, probabilities)
        self.stopping = False

    async def _one(self, http, number):
        turn = number
        while not self.stopping:
            start, stop = (0, len(self.pictures)) if number < 2 else (turn % 10, turn % 10 + 1)
            answer = await http.post("/predict", files=[("file", one) for one in self.pictures[start:stop]])
            assert answer.status_code == 200, answer.text
            body = answer.json()
            rows = [sorted(each["probabilities"], key=lambda one: one["index"]) for each in body["predictions"]]
            probabilities = np.array([[one["probability"] for one in row] for row in rows])
            self.answers.append((body["model"]["version"], start, probabilities))
            turn += 1

    async def wait_for(self, version, count=20):
        """Wait until so many further answers name this version."""
        begin = len(self.answers)
        while Counter(one[0] for one in self.answers[begin:])[version] < count:
            for task in self.tasks:
                if task.done():
                    task.result()
            await asyncio.sleep(0.01)

    async def __aenter__(self):
        self.http = httpx.AsyncClient(base_url=self.service.url, timeout=120)
        self.tasks = [asyncio.create_task(self._one(self.http, number)) for number in range(8)]
        return self

    async def __aexit__(self, *_):
        self.stopping = True
        try:
            await asyncio.gather(*self.tasks)
        finally:
            await self.http.aclose()
