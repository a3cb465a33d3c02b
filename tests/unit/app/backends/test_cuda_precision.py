"""The precision on CUDA, by backends that pretend: how far answers move with the batch decides."""

import numpy as np
import pytest

from app.backends.agreement import BOUND
from app.backends.choice import open_backend
from app.settings import Settings
from tests.conftest import warnings_of


class PretendedCuda:
    """Opens backends whose logits move by `off` in batches of one, and keeps them."""

    def __init__(self):
        self.off = {"bfloat16": 1.0, "float16": 0.0, "float32": 0.0}
        self.opened = []

    def open(self, _source, _device, precision, _threads, most):
        self.opened.append(PretendedBackend(precision, self.off[precision]))
        self.most = most
        return self.opened[-1]


class PretendedBackend:
    def __init__(self, precision, off):
        self.dtype = precision
        self.off = off
        self.sizes = set()
        self.pictures = set()
        self.closed = False

    def logits(self, images):
        self.sizes.add(len(images))
        self.pictures |= {image.tobytes() for image in images}
        logits = np.tile(np.arange(10, dtype=np.float32), (len(images), 1))
        logits[:, 9] += self.off if len(images) == 1 else 0
        return logits

    def close(self):
        self.closed = True


@pytest.fixture
def cuda(monkeypatch):
    pretended = PretendedCuda()
    monkeypatch.setattr("app.backends.cuda_precision.open_cuda_backend", pretended.open)
    monkeypatch.setattr("app.backends.cuda_device.require_gpu", lambda _device: None)
    monkeypatch.setattr("app.backends.torch_backend.has_fast_bfloat16", lambda _device: True)
    return pretended


def test_auto_leaves_a_precision_whose_answers_move_with_the_batch(source, cuda, caplog):
    backend = open_backend(source, Settings(device="cuda"))
    assert [(one.dtype, one.closed) for one in cuda.opened] == [("bfloat16", True), ("float16", False)]
    assert backend is cuda.opened[-1]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("not in bfloat16 but in float16: probabilities move by 0.")
    assert warning.endswith(f" with the size of the batch, more than the promised {BOUND}")


def test_auto_keeps_a_precision_whose_answers_agree(source, cuda, caplog):
    cuda.off["bfloat16"] = 0.0
    assert open_backend(source, Settings(device="cuda")).dtype == "bfloat16"
    assert not warnings_of(caplog)


def test_auto_ends_with_float32_which_is_told_if_it_moves_too(source, cuda, caplog):
    cuda.off = dict.fromkeys(cuda.off, np.nan)
    assert open_backend(source, Settings(device="cuda")).dtype == "float32"
    assert [line.partition(" probabilities")[0] for line in warnings_of(caplog)] == [
        "not in bfloat16 but in float16:",
        "not in float16 but in float32:",
        "in float32",
    ]


def test_a_precision_that_was_asked_for_stays_and_is_told_of(source, cuda, caplog):
    assert open_backend(source, Settings(device="cuda", precision="bfloat16")).dtype == "bfloat16"
    (warning,) = warnings_of(caplog)
    assert warning.startswith("in bfloat16 probabilities move by ")


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [({"batch_sizes": (2, 1000)}, {2, 256}), ({"max_images": 3, "max_queue_images": 3}, {1, 2, 3})],
)
def test_only_sizes_that_batches_may_have_are_compared(source, cuda, changes, sizes):
    open_backend(source, Settings(device="cuda", precision="float32", **changes))
    assert cuda.opened[0].sizes == sizes


@pytest.mark.parametrize(
    ("changes", "most"), [({"batch_sizes": (2, 1000)}, 1000), ({"max_images": 3, "max_queue_images": 3}, 3)]
)
def test_lanes_are_for_batches_of_no_more_than_there_can_be(source, cuda, changes, most):
    open_backend(source, Settings(device="cuda", precision="float32", **changes))
    assert cuda.most == most


def test_many_pictures_are_compared_of_which_no_two_are_alike(source, cuda):
    open_backend(source, Settings(device="cuda", precision="float32", batch_sizes=(1, 100)))
    assert len(cuda.opened[0].pictures) == 256


def test_a_backend_that_cannot_compute_is_closed(source, cuda, monkeypatch):
    def fails(_backend, _images):
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(PretendedBackend, "logits", fails)
    with pytest.raises(RuntimeError):
        open_backend(source, Settings(device="cuda"))
    assert cuda.opened[0].closed
