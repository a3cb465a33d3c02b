"""New weights in the real process under load: no request lost, and each answer is that of the version it names."""

import asyncio
import os
import signal

import numpy as np
import pytest

from model import checkpoint
from tests.checkpoints import put
from tests.reloads import BATCH_SIZES, Clients, reload

pytestmark = pytest.mark.e2e


def test_weights_change_under_load_without_a_gap_and_a_bad_file_is_refused(
    start, tmp_path, examples, checkpoints, expected
):
    path = tmp_path / "current.safetensors"
    files = [one.read_bytes() for one in checkpoints]
    versions = list(expected)
    put(path, files[0])
    sizes = ",".join(map(str, BATCH_SIZES))
    service = start(
        weights=path, device="cpu", precision="float32", batch_sizes=sizes, timeout_ms=120_000, max_queue_s=60
    )
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
    metrics = service.get("/metrics").text
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


def test_sighup_before_the_service_is_ready_is_no_end_and_a_reload_does_not_hold_up_the_end(start):
    service = start(wait=False)
    service.wait_logged("settings:")
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_ready()
    os.kill(service.process.pid, signal.SIGHUP)
    service.wait_logged("reload: loading")
    assert service.stop() == 0
    assert "Traceback" not in service.log
