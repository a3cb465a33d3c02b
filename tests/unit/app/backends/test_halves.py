"""Large batches in two halves at the same time, in app/backends/openvino_backend.py."""

from collections.abc import Callable

import numpy as np
import pytest

from app.backends import openvino_backend
from app.backends.faster_of_two import FasterOfTwo
from app.backends.measured import Candidate
from app.backends.openvino_backend import HALVES_FROM, OpenVinoBackend, open_openvino
from app.engine import load_engine
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model import checkpoint
from model.checkpoint import Checkpoint
from tests.process import WEIGHTS


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return checkpoint.load(WEIGHTS)


def opened(source: Checkpoint, *, split: bool | None, threads: int = 2, precision: str = "float32") -> OpenVinoBackend:
    return open_openvino(source, Settings(threads=threads, split_batches=split), precision)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def test_halves_answer_as_the_whole_does_and_in_its_order(source: Checkpoint) -> None:
    backend = opened(source, split=True)
    for count in (HALVES_FROM, HALVES_FROM + 1, 40):
        images = pictures(count)
        expected = backend._small.logits(images)
        np.testing.assert_allclose(backend.logits(images), expected, atol=0.05 * np.abs(expected).max())
        assert (backend.logits(images).argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_only_large_batches_are_divided(source: Checkpoint) -> None:
    backend = opened(source, split=True)
    used: list[str] = []

    class Noting:
        def __init__(self, name: str) -> None:
            self.name = name

        def logits(self, images: np.ndarray) -> np.ndarray:
            used.append(self.name)
            return np.zeros((len(images), 10), np.float32)

    backend._small, backend._large = Noting("whole"), Noting("halves")
    for count in (1, HALVES_FROM - 1, HALVES_FROM):
        backend.logits(pictures(count))
    assert used == ["whole", "whole", "halves"]


@pytest.mark.parametrize(
    ("split", "threads", "precision"),
    [(False, 2, "float32"), (None, 1, "float32"), (True, 1, "float32"), (None, 2, "int8")],
)
def test_where_halves_are_not_wanted_or_cannot_be_quicker_batches_stay_whole(
    source: Checkpoint, split: bool | None, threads: int, precision: str
) -> None:
    backend = opened(source, split=split, threads=threads, precision=precision)
    assert backend.tuning["split_batches"] is False
    assert isinstance(backend._large, openvino_backend.WholeBatch)
    assert len(backend._compiled) == threads  # a second one whose layers are cut finer, of no use to a single thread
    assert backend.logits(pictures(HALVES_FROM)).shape == (HALVES_FROM, 10)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_halves_that_are_asked_for_are_always_used(source: Checkpoint, precision: str) -> None:
    backend = opened(source, split=True, precision=precision)
    assert isinstance(backend._large, openvino_backend.Halves)
    assert backend.tuning["split_batches"] is True


def test_the_quicker_of_halves_and_the_whole_is_used_where_the_settings_leave_it_open(source: Checkpoint) -> None:
    backend = opened(source, split=None)
    ways = backend._large
    assert isinstance(ways, FasterOfTwo)
    assert isinstance(ways._usual, openvino_backend.Halves)
    assert isinstance(ways._other, openvino_backend.WholeBatch)


def test_batch_sizes_are_measured_one_way_and_trials_begin_with_serving(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[str] = []

    def noting(name: str, logits: Callable[[Candidate, np.ndarray], np.ndarray]) -> object:
        return lambda way, images: used.append(name) or logits(way, images)

    monkeypatch.setattr(openvino_backend.Halves, "logits", noting("halves", openvino_backend.Halves.logits))
    monkeypatch.setattr(openvino_backend.WholeBatch, "logits", noting("whole", openvino_backend.WholeBatch.logits))
    backend = opened(source, split=None)
    images = pictures(HALVES_FROM)
    backend.logits(images)
    used.clear()
    for _ in range(8):
        backend.logits(images)
    assert used == ["halves"] * 8
    backend.release_setup_memory()
    used.clear()
    for _ in range(4):
        backend.logits(images)
    assert used == ["halves", "whole"] * 2


@pytest.mark.parametrize("wrong", [3.0, np.nan])
def test_halves_that_answer_otherwise_are_left_out_and_warned_of(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, wrong: float
) -> None:
    right = openvino_backend.Halves.logits
    monkeypatch.setattr(openvino_backend.Halves, "logits", lambda *given: right(*given) + np.float32(wrong))
    backend = opened(source, split=None)
    assert backend.tuning["split_batches"] is None  # a reload asks again: it is another checkpoint
    assert len(backend._compiled) == 2  # for small batches and for whole ones
    assert isinstance(backend._large, openvino_backend.WholeBatch)
    assert "batches are not halved" in caplog.text


@pytest.mark.parametrize("split", [None, True, False])
def test_an_engine_that_is_given_what_another_one_found_is_its_like(source: Checkpoint, split: bool | None) -> None:
    settings = Settings(device="cpu", runtime="openvino", threads=2, max_queue_images=256, split_batches=split)
    first = load_engine(settings)
    assert first.tuning["split_batches"] is split
    assert load_engine(settings.model_copy(update=first.tuning)).tuning == first.tuning


@pytest.mark.parametrize(
    ("broken", "error", "seen"),
    [
        (0, RuntimeError("std::bad_alloc"), EngineOutOfMemory),
        (1, RuntimeError("std::bad_alloc"), EngineOutOfMemory),
        (1, MemoryError(), MemoryError),
    ],
)
def test_a_half_that_fails_waits_for_the_other_and_the_next_batch_is_right(
    source: Checkpoint, broken: int, error: Exception, seen: type[Exception]
) -> None:
    backend = opened(source, split=True)
    halves = backend._large
    assert isinstance(halves, openvino_backend.Halves)
    good = halves._requests
    waited: list[int] = []

    class Request:
        def __init__(self, number: int) -> None:
            self.number = number

        def set_input_tensor(self, tensor: object) -> None:
            good[self.number].set_input_tensor(tensor)

        def start_async(self, *, share_inputs: bool) -> None:
            if self.number == broken:
                raise error
            good[self.number].start_async(share_inputs=share_inputs)

        def wait(self) -> None:
            waited.append(self.number)
            good[self.number].wait()

    images = pictures(HALVES_FROM)
    expected = backend.logits(images)
    halves._requests = Request(0), Request(1)
    with pytest.raises(seen):
        backend.logits(images)
    assert waited == [1 - broken]
    halves._requests = good
    np.testing.assert_allclose(backend.logits(images), expected, atol=1e-4)
