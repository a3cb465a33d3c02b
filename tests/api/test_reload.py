"""The checkpoint loaded again in the whole application, over fake engines."""

import asyncio
import hashlib
import threading
from functools import partial

import numpy as np
import pytest

from app.engine import SelfTestFailed
from app.engine_errors import EngineBroken, EngineOutOfMemory, EngineUnavailable
from model.metadata import CheckpointError
from tests.api.conftest import occupied, serving
from tests.conftest import encode, noise
from tests.fakes import CLASSES, FakeEngine, probabilities_of

pytestmark = pytest.mark.anyio

PNG = {"content-type": "image/png"}
PICTURE = encode(noise())


class Engines:
    """A factory that gives these engines, one a load; what is an exception is raised."""

    def __init__(self, *engines):
        self.left = list(engines)
        self.loading = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold(self):
        self._open.clear()

    def release(self):
        self._open.set()

    def __call__(self, _settings):
        self.loading.set()
        assert self._open.wait(30)
        engine = self.left.pop(0)
        if isinstance(engine, BaseException):
            raise engine
        return engine


async def reload(client, times=1):
    service = client.app.state.service
    for _ in range(times):
        service.reload()
    await asyncio.wait({service.reloader._task})
    return (await client.get("/health")).json()


async def ask(client, count=1):
    answer = await client.post("/predict", files=[("file", PICTURE)] * count)
    assert answer.status_code == 200
    body = answer.json()
    return body["model"]["version"], [one["label"] for one in body["predictions"]]


def label(shift):
    pixels = np.asarray(noise()).transpose(2, 0, 1)[None]
    return CLASSES[(probabilities_of(pixels)[0].argmax() + shift) % 10]


@pytest.mark.parametrize("loaded", [FakeEngine(shift=1), FakeEngine(), CheckpointError("checkpoint x: corrupt")])
async def test_memory_is_given_back_after_every_load_whatever_becomes_of_it(monkeypatch, loaded):
    given_back = []
    for module in ("app.engine_service", "app.reload"):
        monkeypatch.setattr(f"{module}.give_back_memory", partial(given_back.append, module))
    async with serving(factory=Engines(FakeEngine(), loaded)) as client:
        assert given_back == ["app.engine_service"]
        await reload(client)
        assert given_back == ["app.engine_service", "app.reload"]


async def test_the_new_model_answers_and_everything_names_it(caplog):
    caplog.set_level("INFO")
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new)) as client:
        assert await ask(client) == ("0123456789ab", [label(0)])
        health = await reload(client)
        assert await ask(client) == ("1123456789ab", [label(1)])
        assert health["model"]["version"] == "1123456789ab"
        assert health["reload"]["outcome"] == "succeeded"
        assert health["reload"]["finished"] == 1
        assert health["reload"]["running"] is False
        assert (await client.get("/model")).json()["version"] == "1123456789ab"
        metrics = (await client.get("/metrics")).text
        assert 'resnet_reloads_total{outcome="succeeded"} 1.0' in metrics
        assert 'resnet_reloads_total{outcome="refused"} 0.0' in metrics
        assert 'version="1123456789ab"} 1.0' in metrics
        assert "0123456789ab" not in metrics
        assert f'resnet_predictions_total{{label="{label(0)}"}} 1.0' in metrics
        assert (old.closed, new.closed) == (True, False)
    assert "version 1123456789ab serves in place of 0123456789ab" in caplog.text


async def test_the_old_model_answers_while_the_new_one_loads():
    engines = Engines(FakeEngine(), FakeEngine(shift=1))
    async with serving(factory=engines) as client:
        engines.hold()
        engines.loading.clear()
        done = asyncio.ensure_future(reload(client))
        assert await asyncio.to_thread(engines.loading.wait, 10)
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/health")).json()["reload"]["running"] is True
        assert (await ask(client))[0] == "0123456789ab"
        engines.release()
        await done
        assert (await ask(client))[0] == "1123456789ab"


async def test_a_request_that_was_begun_is_answered_by_the_old_model_alone():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new), batch_sizes=(1, 4)) as client:
        old.hold()
        begun = asyncio.ensure_future(ask(client, 10))
        assert await asyncio.to_thread(old.entered.wait, 10)
        done = asyncio.ensure_future(reload(client))
        service = client.app.state.service
        while service.predictor.batcher._swap is None:
            await asyncio.sleep(0.001)
        late = asyncio.ensure_future(ask(client, 10))
        while service.predictor.batcher.queued_images < 16:
            await asyncio.sleep(0.001)
        old.release()
        assert await begun == ("0123456789ab", [label(0)] * 10)
        assert await late == ("1123456789ab", [label(1)] * 10)
        await done
        assert (old.batches, new.batches) == ([4, 4, 2], [4, 4, 2])


def other_classes():
    engine = FakeEngine(shift=1)
    engine.card["classes"] = CLASSES[::-1]
    return engine


async def test_a_reload_measures_nothing_again():
    """Beside an engine that serves, batch sizes and the better precision would come out wrong."""
    engines, seen = [FakeEngine(), FakeEngine(shift=1)], []

    def factory(settings):
        seen.append((settings.precision, settings.batch_sizes, settings.split_batches))
        return engines[len(seen) - 1]

    async with serving(factory=factory) as client:
        await reload(client)
    assert seen == [("auto", None, None), ("float32", engines[0].batch_sizes, None)]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (CheckpointError("checkpoint x: content does not match its SHA-256 digest"), "does not match its SHA-256"),
        (SelfTestFailed("self-test failed: probabilities differ by 0.9"), "self-test failed"),
        (EngineUnavailable("the process that converts the checkpoint has ended with signal 9"), "ended with signal 9"),
        (MemoryError(), "no memory for a second engine"),
        (EngineOutOfMemory(), "no memory for a second engine"),
        (ValueError("secret"), "ValueError"),
        (SystemExit(3), "ThreadDied"),
        (FakeEngine(size=64, shift=1), "input_size of the new checkpoint differs"),
        (other_classes(), "classes of the new checkpoint differs"),
    ],
)
async def test_what_cannot_be_trusted_is_refused_and_the_old_model_serves_on(caplog, bad, reason):
    old, good = FakeEngine(), FakeEngine(shift=2)
    async with serving(factory=Engines(old, bad, good)) as client:
        health = await reload(client)
        assert health["ready"] is True
        assert health["reload"]["outcome"] == "refused"
        assert "secret" not in str(health)
        assert await ask(client) == ("0123456789ab", [label(0)])
        metrics = (await client.get("/metrics")).text
        assert 'resnet_reloads_total{outcome="refused"} 1.0' in metrics
        assert 'version="0123456789ab"} 1.0' in metrics
        (line,) = [record for record in caplog.records if record.levelname == "ERROR"]
        assert "reload refused" in line.getMessage()
        assert "version 0123456789ab serves on" in line.getMessage()
        assert reason in line.getMessage()
        assert not old.closed
        assert getattr(bad, "closed", True)
        assert (await reload(client))["reload"]["outcome"] == "succeeded"
        assert await ask(client) == ("2123456789ab", [label(2)])


async def test_the_same_file_changes_nothing(caplog):
    caplog.set_level("INFO")
    old, same = FakeEngine(), FakeEngine()
    async with serving(factory=Engines(old, same)) as client:
        health = await reload(client)
        assert health["reload"]["outcome"] == "unchanged"
        await ask(client)
        assert 'resnet_reloads_total{outcome="unchanged"} 1.0' in (await client.get("/metrics")).text
        assert (old.closed, same.closed) == (False, True)
    assert (old.batches, same.batches) == ([1], [])
    assert old.closed  # when the service ends
    assert "still holds version 0123456789ab" in caplog.text


async def test_for_a_file_that_is_served_already_no_second_engine_is_made(tmp_path):
    path, old = tmp_path / "checkpoint.safetensors", FakeEngine()
    path.write_bytes(b"content")
    old.card["sha256"] = hashlib.sha256(b"content").hexdigest()
    async with serving(factory=Engines(old, FakeEngine(shift=1)), weights=path) as client:
        assert (await reload(client))["reload"]["outcome"] == "unchanged"
        assert not old.closed
        path.write_bytes(b"other content")
        assert (await reload(client))["reload"]["outcome"] == "succeeded"


async def test_a_file_that_is_served_already_and_no_longer_pinned_is_refused(tmp_path, caplog):
    path, old = tmp_path / "checkpoint.safetensors", FakeEngine()
    path.write_bytes(b"content")
    old.card["sha256"] = hashlib.sha256(b"content").hexdigest()
    async with serving(factory=Engines(old), weights=path) as client:
        (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  another.safetensors\n")
        assert (await reload(client))["reload"]["outcome"] == "refused"
    assert "SHA256SUMS does not list it" in caplog.text


async def test_asked_for_several_times_while_one_is_under_way_one_more_follows():
    engines = Engines(*(FakeEngine(shift=shift) for shift in range(4)))
    async with serving(factory=engines) as client:
        health = await reload(client, times=5)
        assert health["reload"]["finished"] == 2
        assert health["model"]["version"] == "2123456789ab"
        assert len(engines.left) == 1


async def test_asked_for_while_the_service_starts_it_follows_and_what_came_meanwhile_is_served():
    engines = Engines(FakeEngine(), FakeEngine(shift=1))
    engines.hold()
    async with serving(factory=engines, wait=False) as client:
        service = client.app.state.service
        assert await asyncio.to_thread(engines.loading.wait, 10)
        service.reload()
        service.reload()
        engines.release()
        await asyncio.wait({service._loading})
        await asyncio.wait({service.reloader._task})
        assert service.reloader.finished == 1
        assert await ask(client) == ("1123456789ab", [label(1)])


@pytest.mark.parametrize("asked", ["while it starts", "while it drains"])
async def test_it_is_ignored_once_the_service_is_to_end(caplog, asked):
    engines = Engines(FakeEngine())
    engines.hold()
    async with serving(factory=engines, wait=False) as client:
        service = client.app.state.service
        if asked == "while it starts":
            service.reload()
        service.lifecycle.drain()
        engines.release()
        await asyncio.wait({service._loading})
        if asked == "while it drains":
            service.reload()
        assert "reload ignored: the service is shutting down" in caplog.text
        assert not service.reloader.running


async def test_the_end_of_the_service_does_not_wait_for_a_load_that_hangs():
    engines = Engines(FakeEngine(), FakeEngine(shift=1))
    async with serving(factory=engines) as client:
        engines.hold()
        engines.loading.clear()
        client.app.state.service.reload()
        assert await asyncio.to_thread(engines.loading.wait, 10)
    engines.release()


async def test_the_end_that_comes_just_after_the_exchange_closes_the_old_engine_and_not_the_new_one(monkeypatch):
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new)) as client:
        reloader, batcher = client.app.state.service.reloader, client.app.state.service.predictor.batcher
        closing = []

        def apply(swap, apply=batcher._apply):
            reloader.begin(client.app.state.service.predictor)  # which does not follow any more
            closing.append(asyncio.ensure_future(reloader.close()))  # has its turn before the reload goes on
            apply(swap)

        monkeypatch.setattr(batcher, "_apply", apply)
        health = await reload(client)
        await closing[0]
        assert (old.closed, new.closed) == (True, False)
        assert health["model"]["version"] == "1123456789ab"
        assert await ask(client) == ("1123456789ab", [label(1)])
    assert new.closed


async def test_a_busy_engine_is_exchanged_once_its_batch_is_done():
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new)) as client:
        async with occupied(old, client) as first:
            done = asyncio.ensure_future(reload(client))
            batcher = client.app.state.service.predictor.batcher
            while batcher._swap is None:
                await asyncio.sleep(0.001)
            assert (await client.get("/health")).json()["model"]["version"] == "0123456789ab"
        assert (await first).json()["model"]["version"] == "0123456789ab"
        assert (await done)["model"]["version"] == "1123456789ab"


async def test_an_engine_that_breaks_before_the_exchange_is_no_verdict_on_the_checkpoint(caplog):
    old, new = FakeEngine(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new)) as client:
        async with occupied(old, client):
            done = asyncio.ensure_future(reload(client))
            while client.app.state.service.predictor.batcher._swap is None:
                await asyncio.sleep(0.001)
            old.errors = [EngineBroken("device lost")]
        health = await done
        assert health["status"] == "failed"
        assert (health["reload"]["outcome"], health["reload"]["finished"]) == (None, 0)
        assert 'resnet_reloads_total{outcome="refused"} 0.0' in (await client.get("/metrics")).text
    assert "reload given up: version 0123456789ab serves no longer" in caplog.text
    assert "serves on" not in caplog.text
    assert new.closed


async def test_a_reload_that_came_to_serve_is_one_whatever_becomes_of_the_old_engine(caplog):
    class Clinging(FakeEngine):
        def close(self):
            raise RuntimeError("a device that is lost")

    old, new = Clinging(), FakeEngine(shift=1)
    async with serving(factory=Engines(old, new)) as client:
        assert (await reload(client))["reload"]["outcome"] == "succeeded"
        assert (await ask(client))[0] == new.card["version"]
        assert "refused" not in caplog.text
        assert "could not be closed" in caplog.text
