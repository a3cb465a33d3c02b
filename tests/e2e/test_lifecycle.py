"""Start, refuse to start, drain: the life of the real process."""

import asyncio
import os
import pickle
import signal
import time

import httpx
import pytest
import safetensors.torch
import torch

from model import checkpoint
from tests.process import WEIGHTS

pytestmark = pytest.mark.e2e

PNG = {"content-type": "image/png"}


def test_sigterm_under_load_loses_no_accepted_request_and_exits_0(start, examples):
    service = start(drain_delay_s=0.5)
    answered, refused, lost = [], [], []
    unready = asyncio.Event()

    async def client(http):
        while not refused:
            try:
                answer = await http.post("/predict", content=examples["cat"], headers=PNG)
                answered.append(answer.status_code)
            except httpx.ConnectError:  # never accepted: the port is closed
                refused.append(1)
            except httpx.TransportError as error:
                lost.append(repr(error))
                return

    async def watch_ready():
        async with httpx.AsyncClient(base_url=service.url, timeout=30) as http:
            while (await http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.01)
            unready.set()

    async def scenario():
        limits = httpx.Limits(max_connections=32)
        async with httpx.AsyncClient(base_url=service.url, limits=limits, timeout=60) as http:
            clients = [asyncio.create_task(client(http)) for _ in range(32)]
            watcher = asyncio.create_task(watch_ready())
            while len(answered) < 100:
                await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(watcher, 30)
            assert not refused, "the port closed before the service turned unready"
            await asyncio.wait_for(asyncio.gather(*clients), 60)

    asyncio.run(scenario())
    assert service.process.wait(timeout=60) == 0
    assert lost == []
    assert set(answered) == {200}
    assert unready.is_set()
    assert "Traceback" not in service.log


def test_sigterm_while_idle_exits_0(start):
    service = start()
    assert service.stop() == 0
    assert "draining" in service.log


def test_sigint_drains_as_well(start):
    assert start().stop(signal.SIGINT) == 0


def test_sigterm_while_starting_exits_0(start):
    service = start(wait=False)
    while "Uvicorn running" not in service.log:
        assert service.process.poll() is None
        time.sleep(0.01)
    assert service.stop() == 0


def test_a_second_signal_ends_it_at_once(start):
    service = start(drain_delay_s=3600)
    service.process.send_signal(signal.SIGTERM)
    while "draining" not in service.log:
        time.sleep(0.01)
    assert httpx.get(f"{service.url}/readyz").status_code == 503
    assert service.stop() == 128 + signal.SIGTERM


def test_settings_are_logged_on_one_line_without_the_key(start):
    service = start(wait=False, api_key="hunter2")
    while "settings:" not in service.log:
        assert service.process.poll() is None
        time.sleep(0.01)
    line = next(line for line in service.log.splitlines() if "settings:" in line)
    assert "max_queue_images=1024" in line
    assert "hunter2" not in service.log


def flip_a_byte(path):
    data = bytearray(WEIGHTS.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def drop_a_tensor(path):
    with safetensors.safe_open(WEIGHTS, "pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    del tensors["head.bias"]
    safetensors.torch.save_file(tensors, path, header)


def name_an_unknown_architecture(path):
    source = checkpoint.load(WEIGHTS)
    fields = source.metadata.architecture | {"arch": "resnet19"}
    metadata = source.metadata.model_copy(update={"architecture": fields})
    checkpoint.save(path, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)


def use_the_wrong_transform(path):
    """All digests are right, but the mean is another than the network was trained with."""
    source = checkpoint.load(WEIGHTS)
    metadata = source.metadata.model_copy(update={"mean": (0.0, 0.0, 0.0)})
    checkpoint.save(path, metadata, source.tensors, source.self_test_images, source.self_test_probabilities)


class Bomb:
    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def rename_a_pickle(path):
    bomb = Bomb()
    bomb.path = path.parent / "exploded"
    path.write_bytes(pickle.dumps(bomb))


def rename_a_torch_file(path):
    torch.save({"head.bias": torch.zeros(10)}, path)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (flip_a_byte, "does not match its SHA-256 digest"),
        (drop_a_tensor, "missing tensor(s): head.bias"),
        (name_an_unknown_architecture, "unknown architecture 'resnet19'"),
        (use_the_wrong_transform, "self-test failed"),
        (rename_a_pickle, "looks like a pickle"),
        (rename_a_torch_file, "looks like a pickle"),
        (lambda _path: None, "No such file"),
    ],
)
def test_a_checkpoint_that_cannot_be_trusted_is_refused_in_one_line(start, tmp_path, spoil, reason):
    path = tmp_path / "bad.safetensors"
    spoil(path)
    service = start(wait=False, weights=path)
    assert service.process.wait(timeout=120) == 1
    errors = [line for line in service.log.splitlines() if " ERROR " in line]
    assert len(errors) == 1
    assert "cannot serve" in errors[0]
    assert reason in errors[0]
    assert "Traceback" not in service.log
    assert " ready after" not in service.log
    assert not (tmp_path / "exploded").exists()
