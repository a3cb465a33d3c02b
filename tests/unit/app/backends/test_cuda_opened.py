"""What a GPU gets: the backend over the real network, on a CPU that pretends; and what is said of a GPU left unused."""

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.cuda_backend import open_cuda_backend
from app.backends.torch_backend import TorchBackend
from app.engine import CheckpointEngine
from app.engine_errors import EngineOutOfMemory
from model.transforms import normalise
from tests.conftest import warnings_of
from tests.fake_cuda import NO_ENGINE, FakeCuda


@pytest.fixture
def real(source, monkeypatch):
    """The backend that CUDA gets, with pieces of four, over a torch.cuda that only pretends."""
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(cuda_backend, "PIECE", 4)
    return open_cuda_backend(source, "cpu", "float32", 1)


def test_lanes_over_the_real_network_give_the_eager_answers(real, source, caplog):
    pictures = np.concatenate([source.self_test_images[::-1]] * 2)
    for count in (1, 3, 4, 6, 17):
        expected = real.eager.logits(pictures[:count])
        np.testing.assert_allclose(real.logits(pictures[:count]), expected, atol=1e-4)
    # A CPU has no cuDNN: the first way was left for the second one.
    assert real.mode == "CUDA graphs"
    (warning,) = warnings_of(caplog)
    assert warning.startswith("CUDA graphs with fused convolutions does not work here, going on with CUDA graphs")


@pytest.mark.parametrize(("most", "lanes", "sizes"), [(3, 1, (1, 2, 3)), (4, 1, (1, 2, 3, 4)), (5, 2, (1, 2, 3, 4))])
def test_a_second_lane_is_opened_only_for_batches_of_two_pieces(source, monkeypatch, most, lanes, sizes):
    cuda = FakeCuda().install(monkeypatch)
    monkeypatch.setattr(cuda_backend, "PIECE", 4)
    backend = open_cuda_backend(source, "cpu", "float32", 1, most)
    pictures = source.self_test_images[:9]
    np.testing.assert_allclose(backend.logits(pictures), backend.eager.logits(pictures), atol=1e-4)
    opened = backend._modes[0].opened()
    assert (len(opened.lanes), opened.sizes) == (lanes, sizes)
    assert {len(one._images) for one in opened.lanes} == {sizes[-1]}
    assert len(cuda.streams) <= 2 * lanes


def test_an_engine_over_it_passes_its_self_test_and_is_warm_once_prepared(real, source):
    engine = CheckpointEngine(source, real, (1, 3, 4, 8))
    engine.self_test()
    engine.prepare(8)
    proven = set(real._modes[0]._proven)
    for count in range(1, 9):
        engine.run(source.self_test_images[:count])
    assert real._modes[0]._proven == proven


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


def test_the_network_gets_the_very_numbers_that_training_normalised(source):
    seen, metadata, images = [], source.metadata, torch.from_numpy(source.self_test_images)
    TorchBackend(source, "cpu", "float32", 1).logits_by(lambda inputs: seen.append(inputs) or inputs, images)
    assert torch.equal(seen[0], normalise(images, torch.tensor(metadata.mean), torch.tensor(metadata.std)))


@pytest.mark.parametrize(("device", "asked", "threads"), [("cuda", 96, 8), ("cuda:1", 2, 2), ("cpu", 96, 96)])
def test_a_host_with_hundreds_of_cores_has_no_such_many_threads_beside_a_gpu(
    source, monkeypatch, device, asked, threads
):
    class Stopped(Exception):
        pass

    def stop(threads):
        raise Stopped(threads)

    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(torch, "set_num_threads", stop)
    with pytest.raises(Stopped) as stopped:
        TorchBackend(source, device, "float32", asked)
    assert stopped.value.args == (threads,)


def test_the_eager_network_that_has_worked_lacks_memory_where_cudnn_finds_nothing(source, monkeypatch):
    eager = TorchBackend(source, "cpu", "float32", 1)
    pictures = source.self_test_images[:1]

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
