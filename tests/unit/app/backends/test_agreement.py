"""Answers that do not depend on the batch: how far they move is measured, and on CUDA decides over the precision."""

import numpy as np
import pytest

from app.backends.agreement import BOUND, spread
from app.backends.backend import EngineOutOfMemory
from app.backends.choice import open_backend
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from tests.conftest import warnings_of

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 3, 2, 2), dtype=np.uint8)


def moving(by, sizes):
    """An engine of two classes whose answers move in batches of these sizes; keeps the sizes of its batches."""

    def run(images):
        seen.append(len(images))
        share = images.reshape(len(images), -1)[:, :1] / 512 + (by if len(images) in sizes else 0)
        return np.concatenate([share, 1 - share], axis=1).astype(np.float32)

    seen = []
    return run, seen


def test_what_never_moves_has_no_spread_and_each_size_has_full_batches():
    run, seen = moving(0, ())
    assert spread(run, PICTURES, (1, 2, 8)) == 0
    assert seen == [1, 1, 1, 1, 1, 8, 2, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_whichever_size_moves_answers_is_seen(size):
    run, _ = moving(0.01, {size})
    assert spread(run, PICTURES, (1, 2, 8)) == pytest.approx(0.01, abs=1e-6)


def test_no_size_is_tried_after_one_that_moves_too_far():
    run, seen = moving(0.01, {8})
    spread(run, PICTURES, (1, 2, 8))
    assert seen == [1, 1, 1, 1, 1, 8]


def test_answers_that_are_no_numbers_never_agree():
    run, _ = moving(np.nan, {2})
    assert spread(run, PICTURES, (1, 2, 8)) == np.inf


def test_a_size_that_does_not_fit_counts_for_nothing():
    agreeing, _ = moving(0, ())

    def run(images):
        if len(images) == 8:
            raise EngineOutOfMemory
        return agreeing(images)

    assert spread(run, PICTURES, (1, 2, 8)) == 0


# -- on CUDA, by backends that pretend


@pytest.fixture(scope="module")
def source():
    return checkpoint.load(SHIPPED_WEIGHTS)


class PretendedCuda:
    """Opens backends whose logits move by `off` in batches of one, and keeps them."""

    def __init__(self):
        self.off = {"bfloat16": 1.0, "float16": 0.0, "float32": 0.0}
        self.opened = []

    def open(self, _source, _device, precision, _threads):
        self.opened.append(PretendedBackend(precision, self.off[precision]))
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
    monkeypatch.setattr("app.backends.choice.open_cuda_backend", pretended.open)
    monkeypatch.setattr("app.backends.choice._require_gpu", lambda _device: None)
    monkeypatch.setattr("app.backends.choice.has_fast_bfloat16", lambda _device: True)
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
