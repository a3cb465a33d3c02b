"""What loading an engine proves, warns of and limits, and what it gives back where it fails."""

import weakref

import numpy as np
import pytest
import torch

from app import engine as engine_module
from app.backends.agreement import BOUND
from app.engine import CheckpointEngine, SelfTestFailed, load_engine
from app.settings import Settings
from tests.conftest import warnings_of


def change_backend(monkeypatch, change):
    """Have every backend that is opened changed by `change`."""
    opened = engine_module.open_backend

    def open_changed(source, settings):
        backend = opened(source, settings)
        change(backend)
        return backend

    monkeypatch.setattr(engine_module, "open_backend", open_changed)


def multiply_logits(monkeypatch, factor):
    """Have logits multiplied by `factor` of how many images there are."""

    def change(backend):
        right = backend.logits
        backend.logits = lambda images: right(images) * factor(len(images))

    change_backend(monkeypatch, change)


@pytest.mark.parametrize("batch_sizes", [(1, 16), None], ids=["given, as for a reload", "chosen"])
@pytest.mark.parametrize("wrong", [lambda count: count == 1, lambda count: count > 5], ids=["alone", "in a batch"])
def test_what_computes_large_batches_is_tested_as_what_computes_single_images_is(monkeypatch, wrong, batch_sizes):
    multiply_logits(monkeypatch, lambda count: np.nan if wrong(count) else 1)
    monkeypatch.setattr(engine_module, "choose_batch_sizes", lambda *_args, **_options: (1, 16))
    with pytest.raises(SelfTestFailed):
        load_engine(Settings(device="cpu", runtime="openvino", batch_sizes=batch_sizes))


@pytest.mark.parametrize(
    ("factor", "off_from", "told"), [(1.01, 16, True), (1.01, 17, False), (1.0001, 16, False)], ids=str
)
def test_answers_that_move_with_the_size_of_the_batch_are_warned_of(monkeypatch, caplog, factor, off_from, told):
    multiply_logits(monkeypatch, lambda count: factor if count >= off_from else 1)
    load_engine(Settings(device="cpu", precision="float32", runtime="openvino", batch_sizes=(1, 2, 16))).close()
    warnings = warnings_of(caplog)
    assert len(warnings) == told
    assert all(text.startswith("in float32 probabilities move by 0.00") for text in warnings)
    assert all(text.endswith(f" with the size of the batch, more than the promised {BOUND}") for text in warnings)


@pytest.mark.parametrize(
    ("device", "sizes", "compared_sizes"), [("cpu", (2, 4, 8), [(1, 8)]), ("cpu", (1,), []), ("cuda:0", (2, 4, 8), [])]
)
def test_on_cuda_it_is_known_by_then_and_one_size_needs_no_comparison(monkeypatch, device, sizes, compared_sizes):
    compared = []
    change_backend(monkeypatch, lambda backend: setattr(backend, "device", device))
    monkeypatch.setattr(
        engine_module, "max_difference_between_batch_sizes", lambda _run, _pictures, sizes: compared.append(sizes) or 0
    )
    load_engine(Settings(device="cpu", runtime="openvino", batch_sizes=sizes)).close()
    assert compared == compared_sizes


@pytest.mark.parametrize(
    ("threads", "places", "most"), [(1, 5, 5), (1, 1000, 32), (2, 1000, 32), (3, 1000, 48), (8, 1000, 64)]
)
def test_no_batch_is_larger_than_the_queue_or_than_pays_with_so_many_threads(monkeypatch, threads, places, most):
    asked = []

    def prepare(engine, largest):
        asked.append(largest)
        engine.batch_sizes = (1,)

    monkeypatch.setattr(CheckpointEngine, "prepare", prepare)
    load_engine(Settings(device="cpu", max_images=1, max_queue_images=places, threads=threads)).close()
    assert asked == [most]


@pytest.mark.parametrize("step", ["self_test", "prepare"])
def test_an_engine_that_cannot_serve_gives_back_what_it_holds(monkeypatch, step):
    closed, held = [], []

    def fail(*_):
        activations = torch.zeros(1)
        held.append(weakref.ref(activations))
        raise SelfTestFailed("as if")

    def close(engine):
        assert held[0]() is None  # by then, or torch would keep their memory
        closed.append(engine)

    monkeypatch.setattr(CheckpointEngine, step, fail)
    monkeypatch.setattr(CheckpointEngine, "close", close)
    with pytest.raises(SelfTestFailed):
        load_engine(Settings(device="cpu", batch_sizes=(1,)))
    assert len(closed) == 1
