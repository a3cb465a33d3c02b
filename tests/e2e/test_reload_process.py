"""New weights in the real process under load: no request lost, and each answer is that of the version it names."""

import asyncio
import io
import os
import signal
import sys
from collections import Counter

import httpx
import numpy as np
import pytest
from PIL import Image

from app.backends.choice import open_backend
from app.engine import CheckpointEngine
from app.settings import Settings
from model import checkpoint
from tests.checkpoints import put, write_turned
from tests.conftest import ROOT
from tests.process import WEIGHTS

pytestmark = pytest.mark.e2e

BATCH_SIZES = (1, 2, 4, 8)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """The shipped checkpoint, and one that takes every class for the next one."""
    return [WEIGHTS, write_turned(tmp_path_factory.mktemp("checkpoints") / "turned.safetensors")]


@pytest.fixture(scope="module")
def expected(checkpoints, examples):
    """What each version answers offline, float32 (10, classes) by version."""
    images = np.stack([np.asarray(Image.open(io.BytesIO(data))).transpose(2, 0, 1) for data in examples.values()])
    answers = {}
    for path in checkpoints:
        source = checkpoint.load(path)
        engine = CheckpointEngine(
            source.facts, open_backend(source, Settings(device="cpu", precision="float32", threads=1)), (10,)
        )
        answers[source.version] = engine.run(np.ascontiguousarray(images))
    return answers


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


def test_weights_change_under_load_without_a_gap_and_a_bad_file_is_refused(
    start, tmp_path, examples, checkpoints, expected
):
    path = tmp_path / "current.safetensors"
    files = [one.read_bytes() for one in checkpoints]
    versions = list(expected)
    put(path, files[0])
    sizes = ",".join(map(str, BATCH_SIZES))
    service = start(weights=path, device="cpu", precision="float32", batch_sizes=sizes, timeout_ms=120_000)
    clients = Clients(service, list(examples.values()))

    async def scenario():
        async with clients:
            await clients.wait_for(versions[0])
            for old, new in ((0, 1), (1, 0), (0, 1)):
                put(path, files[new])
                code, line = await reload(service)
                assert (code, line) == (0, f"version {versions[new]} serves in place of {versions[old]}")
                await clients.wait_for(versions[new])
            assert await reload(service) == (0, f"version {versions[1]} serves already")
            corrupt = bytearray(files[0])
            corrupt[len(corrupt) // 2] ^= 1
            put(path, bytes(corrupt))
            code, line = await reload(service)
            assert code == 1
            assert line == f"refused: the service's log says why; version {versions[1]} serves on"
            begin = len(clients.answers)
            await clients.wait_for(versions[1])
        assert {one[0] for one in clients.answers[begin:]} == {versions[1]}

    asyncio.run(scenario())
    for version, start_at, probabilities in clients.answers:
        offline = expected[version][start_at : start_at + len(probabilities)]
        assert np.abs(probabilities - offline).max() <= 1e-3
    for outcome, count in {"succeeded": 3, "unchanged": 1, "refused": 1}.items():
        assert service.metric(f'resnet_reloads_total{{outcome="{outcome}"}}') == count
    metrics = httpx.get(f"{service.url}/metrics").text
    assert versions[1] in metrics
    assert versions[0] not in metrics
    (error,) = [line for line in service.log.splitlines() if " ERROR " in line]
    assert "content does not match its SHA-256 digest" in error
    assert service.stop() == 0
    assert "Traceback" not in service.log


def test_a_pinned_digest_stops_any_other_file(start, tmp_path, checkpoints, expected):
    path = tmp_path / "current.safetensors"
    old, new = checkpoints
    put(path, old.read_bytes())
    service = start(weights=path, weights_sha256=checkpoint.load(old).sha256)
    put(path, new.read_bytes())
    code, line = asyncio.run(reload(service))
    assert code == 1
    assert line == f"refused: the service's log says why; version {next(iter(expected))} serves on"
    (error,) = [line for line in service.log.splitlines() if " ERROR " in line]
    assert "is not the one expected" in error
    assert service.stop() == 0


def test_sighup_before_the_service_is_ready_is_ignored_and_a_reload_does_not_hold_up_the_end(start):
    service = start(wait=False)
    service.wait_logged("settings:")
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_logged("reload ignored")
    service.wait_ready()
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_logged("reload: loading")
    assert service.stop() == 0
    assert "Traceback" not in service.log
