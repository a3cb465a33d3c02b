"""What a GPU gets: the backend over the real network, on a CPU that pretends; and what is said of a GPU left unused."""

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.backend import EngineOutOfMemory, EngineUnavailable
from app.backends.choice import open_backend, resolve
from app.backends.cuda_backend import open_cuda_backend
from app.backends.torch_backend import TorchBackend
from app.engine import CheckpointEngine
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from tests.conftest import warnings_of
from tests.fake_cuda import NO_ENGINE, FakeCuda


@pytest.fixture(scope="module")
def source():
    return checkpoint.load(SHIPPED_WEIGHTS)


@pytest.fixture
def real(source, monkeypatch):
    """The backend that CUDA gets, with pieces of four, over a torch.cuda that only pretends."""
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(cuda_backend, "PIECE", 4)
    return open_cuda_backend(source, "cpu", "float32", 1)


def test_lanes_over_the_real_network_give_the_eager_answers(real, source, caplog):
    pictures = np.concatenate([source.self_test_images.numpy()[::-1]] * 2)
    for count in (1, 3, 4, 6, 17):
        expected = real.eager.logits(pictures[:count])
        np.testing.assert_allclose(real.logits(pictures[:count]), expected, atol=1e-4)
    # A CPU has no cuDNN: the first way was left for the second one.
    assert real.mode == "CUDA graphs"
    (warning,) = warnings_of(caplog)
    assert warning.startswith("CUDA graphs with fused convolutions does not work here, going on with CUDA graphs")


def test_an_engine_over_it_passes_its_self_test_and_is_warm_once_prepared(real, source):
    engine = CheckpointEngine(source.facts, real, (1, 3, 4, 8))
    engine.self_test()
    engine.prepare(8)
    proven = set(real._proven)
    for count in range(1, 9):
        engine.run(source.self_test_images.numpy()[:count])
    assert real._proven == proven


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_cuda_gets_this_backend(source, device, monkeypatch):
    opened = []

    def opening(*arguments):
        opened.append(arguments)
        return TorchBackend(source, "cpu", *arguments[2:])

    monkeypatch.setattr("app.backends.choice.open_cuda_backend", opening)
    monkeypatch.setattr("app.backends.choice._require_gpu", lambda _device: None)
    open_backend(source, Settings(device=device, precision="float32", threads=1, batch_sizes=(1,)))
    assert opened == [(source, device, "float32", 1)]


@pytest.mark.parametrize(("device", "entered"), [("cuda:1", [torch.device("cuda:1")]), ("cuda", []), ("cpu", [])])
def test_a_numbered_device_is_the_threads_own_before_anything_is_done_there(source, monkeypatch, device, entered):
    seen = []

    class Stopped(Exception):
        pass

    def stop(_threads):
        raise Stopped

    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch, "set_num_threads", stop)
    with pytest.raises(Stopped):
        TorchBackend(source, device, "float32", 1)
    assert seen == entered


@pytest.mark.parametrize(("seen", "device", "warned"), [(True, "auto", 1), (False, "auto", 0), (True, "cpu", 0)])
def test_a_gpu_that_torch_cannot_use_is_told_of_with_the_driver_it_needs(monkeypatch, caplog, seen, device, warned):
    def too_old():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040).\nPlease update")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", too_old)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("app.backends.choice._nvidia_in_sight", lambda: seen)
    assert resolve(Settings(device=device, precision="float32"))[1] == "cpu"
    message = (
        "serving on the CPU, but there is an NVIDIA GPU that torch cannot use: The NVIDIA driver on your system is too "
        "old (found version 12040); CUDA 13.0 needs driver R580 or newer"
    )
    assert warnings_of(caplog) == [message] * warned


@pytest.mark.parametrize(
    ("count", "device", "message"),
    [(0, "cuda", "device cuda cannot be used: no driver"), (2, "cuda:2", "no device cuda:2: torch sees 2 of them")],
)
def test_a_gpu_that_was_asked_for_and_is_not_there_is_one_line(monkeypatch, count, device, message):
    def fails():
        raise AssertionError("no driver")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.cuda, "init", fails)
    with pytest.raises(EngineUnavailable, match=message):
        resolve(Settings(device=device))


def test_the_eager_network_that_has_worked_lacks_memory_where_cudnn_finds_nothing(source, monkeypatch):
    eager = TorchBackend(source, "cpu", "float32", 1)
    pictures = source.self_test_images.numpy()[:1]

    def fails(_images):
        raise RuntimeError(NO_ENGINE)

    with monkeypatch.context() as patch:
        patch.setattr(eager, "_forward", fails)
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            eager.logits(pictures)
    eager.logits(pictures)
    monkeypatch.setattr(eager, "_forward", fails)
    with pytest.raises(EngineOutOfMemory):
        eager.logits(pictures)


@pytest.mark.parametrize(("generation", "precision"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_auto_is_a_gpu_that_torch_can_use_and_its_faster_float(monkeypatch, generation, precision):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device: generation)
    assert resolve(Settings()) == ("torch", "cuda", precision)
