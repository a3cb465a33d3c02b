"""What becomes of errors on CUDA: too little memory, a lost context, and the end; over lanes that pretend."""

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.cuda_backend import open_cuda_backend
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.settings import SHIPPED_WEIGHTS
from model import checkpoint
from tests.conftest import warnings_of
from tests.fake_cuda import NO_ENGINE
from tests.pretended_lanes import PretendedLane, images, logits_of, make


@pytest.fixture(autouse=True)
def _of_two_ways_the_first_stays(monkeypatch):
    monkeypatch.setattr(cuda_backend, "CLOCKS", (lambda: 0.0,))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_too_little_memory_for_a_size_says_nothing_against_the_way(error, caplog):
    lane = PretendedLane()
    lane.errors["prepare"] = [error] * 2  # while ways are compared, and for this batch
    backend = make([lane])
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(4))
    np.testing.assert_array_equal(backend.logits(images(4)), logits_of(images(4)))
    assert backend.mode == "way 0"
    assert not warnings_of(caplog)


OF_TORCH = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("of_lane", "of_eager"),
    [([OF_TORCH], []), ([], [EngineOutOfMemory()]), ([RuntimeError(NO_ENGINE)], [None, EngineOutOfMemory()])],
)
def test_too_little_memory_for_the_largest_size_leaves_smaller_ones_to_the_first_way(of_lane, of_eager, caplog):
    lane, other = PretendedLane(), PretendedLane()
    lane.errors["prepare"] = of_lane
    backend = make([lane], [other])
    backend.eager.errors = of_eager
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(backend.logits(images(1)), logits_of(images(1)))
    assert backend.mode == "way 0"
    assert not lane.closed
    assert not other.ready
    assert "too little memory to measure which way is the quickest: going on with way 0" in caplog.messages
    assert not warnings_of(caplog)


@pytest.mark.parametrize("step", ["open", "prepare"])
def test_too_little_memory_for_two_ways_at_once_leaves_the_first_one(step, monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(other.closed))
    lane, other = PretendedLane(), PretendedLane()
    other.errors["prepare"] = [OF_TORCH]
    backend = make([lane], OF_TORCH if step == "open" else [other])
    np.testing.assert_array_equal(backend.logits(images(4)), logits_of(images(4)))
    assert backend.mode == "way 0"
    assert emptied == [step == "prepare"]  # what the second way had is of use to the first one


def test_cudnn_that_finds_nothing_for_another_size_of_what_it_has_computed_lacks_memory(caplog):
    lane = PretendedLane()
    backend = make([lane])
    backend.logits(images(1))
    lane.errors["prepare"] = [RuntimeError(NO_ENGINE)]
    backend.eager.errors = [None, EngineOutOfMemory()]
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(2))
    np.testing.assert_array_equal(backend.logits(images(2)), logits_of(images(2)))
    assert backend.mode == "way 0"
    assert not warnings_of(caplog)


def test_cudnn_that_finds_nothing_for_what_eager_has_memory_for_has_nothing_for_that_size():
    lane, other = PretendedLane(), PretendedLane()
    backend = make([lane], [other])
    backend.logits(images(1))
    backend.eager.batches.clear()
    lane.errors["prepare"] = [RuntimeError(NO_ENGINE)]
    np.testing.assert_array_equal(backend.logits(images(2)), logits_of(images(2)))
    assert backend.mode == "way 1"
    assert lane.closed
    assert backend.eager.batches == [1, 2, 2]  # it is asked for one, for what was tried, and to prove the other way


def test_cudnn_that_finds_nothing_from_the_first_has_nothing():
    lane = PretendedLane()
    lane.errors["prepare"] = [RuntimeError(NO_ENGINE)] * 2  # for the largest size and for the smallest
    backend = make([lane], [PretendedLane()])
    backend.logits(images(4))
    assert backend.mode == "way 1"
    assert backend.eager.batches == [4]  # not before the other way had its search


def test_too_little_memory_is_seen_through_the_error_that_ends_the_recording():
    lane = PretendedLane()
    ended = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    ended.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    lane.errors["prepare"] = [ended] * 2
    backend = make([lane])
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(4))
    assert backend.mode == "way 0"


@pytest.mark.parametrize("error", [EngineOutOfMemory(), EngineBroken("the CUDA context is lost")])
def test_errors_of_the_eager_network_are_its_own(error):
    backend = make([PretendedLane()])
    backend.eager.errors = [error] * 2
    with pytest.raises(type(error)):
        backend.logits(images(4))
    assert backend.mode == "way 0"


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), EngineOutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineBroken),
        (RuntimeError("shapes do not match"), RuntimeError),
    ],
)
def test_failures_of_proven_lanes_are_told_apart(raised, seen):
    lane = PretendedLane()
    backend = make([lane])
    backend.logits(images(4))
    lane.errors["start"] = [raised]
    with pytest.raises(seen) as caught:
        backend.logits(images(4))
    assert type(caught.value) is seen


def test_a_lost_context_is_met_by_the_eager_network():
    lane = PretendedLane()
    lane.errors["start"] = [RuntimeError("CUDA error: device-side assert triggered")]
    backend = make([lane])
    backend.eager.errors = [None, RuntimeError("CUDA error: device-side assert triggered")]
    with pytest.raises(EngineBroken):
        backend.logits(images(4))


def test_close_closes_all_in_whatever_thread():
    lane = PretendedLane()
    backend = make([lane])
    backend.logits(images(1))
    backend.eager.entered = 0
    backend.close()
    assert lane.closed
    assert backend.eager.closed


def test_a_lost_context_does_not_hide_behind_the_end(caplog):
    backend = make([PretendedLane()])

    def fails():
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    backend.eager.close = fails
    backend.close()
    assert warnings_of(caplog) == ["what the network took may be lost: CUDA error: device-side assert triggered"]


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), EngineOutOfMemory),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), EngineBroken),
    ],
)
def test_failures_to_bring_the_network_to_the_device_are_told_apart(monkeypatch, raised, seen):
    def fails(*_):
        raise raised

    monkeypatch.setattr(cuda_backend, "TorchBackend", fails)
    with pytest.raises(seen):
        open_cuda_backend(checkpoint.load(SHIPPED_WEIGHTS), "cuda", "float32", 1)


def test_lanes_that_were_opened_before_one_failed_are_closed_again(monkeypatch):
    opened, searches = [], []

    class Lane(PretendedLane):
        def __init__(self, *_, search):
            super().__init__()
            searches.append(search)
            if opened:
                raise torch.OutOfMemoryError("no memory for a second one")
            opened.append(self)

    monkeypatch.setattr(cuda_backend, "CudaLane", Lane)
    source = checkpoint.load(SHIPPED_WEIGHTS)
    *_, plain = open_cuda_backend(source, "cpu", "float32", 1)._modes
    with pytest.raises(torch.OutOfMemoryError):
        plain.mode.open()
    assert [lane.closed for lane in opened] == [True]
    assert searches[0] is searches[1]  # one time for all lanes
