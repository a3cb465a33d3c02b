"""Large batches in two halves at the same time, in app/backends/openvino_backend.py."""

from unittest.mock import Mock

import numpy as np
import pytest

from app.backends import measured, openvino_backend
from app.backends.backend import EngineOutOfMemory
from app.backends.openvino_backend import HALVES_FROM, MIN_RELATIVE_RATE, OpenVinoBackend, open_openvino
from app.engine import load_engine
from app.settings import Settings
from model import checkpoint
from model.checkpoint import Checkpoint
from tests.process import WEIGHTS


@pytest.fixture(scope="module")
def source() -> Checkpoint:
    return checkpoint.load(WEIGHTS)


def opened(source: Checkpoint, monkeypatch: pytest.MonkeyPatch, *, gain: float, threads: int = 2) -> OpenVinoBackend:
    """Open the backend where halves are so many times as quick."""
    monkeypatch.setattr(openvino_backend, "speedup", lambda *_: gain)
    return open_openvino(source, Settings(threads=threads), "float32")


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


def test_halves_answer_as_the_whole_does_and_in_its_order(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(source, monkeypatch, gain=2.0)
    assert backend._halves is not None
    for count in (HALVES_FROM, HALVES_FROM + 1, 40):
        images = pictures(count)
        expected = backend._whole.logits(images)
        np.testing.assert_allclose(backend.logits(images), expected, atol=0.05 * np.abs(expected).max())
        assert (backend._halves.logits(images).argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.9


def test_only_large_batches_are_divided(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = opened(source, monkeypatch, gain=2.0)
    used: list[str] = []

    class Noting:
        def __init__(self, name: str) -> None:
            self.name = name

        def logits(self, images: np.ndarray) -> np.ndarray:
            used.append(self.name)
            return np.zeros((len(images), 10), np.float32)

    backend._whole, backend._halves = Noting("whole"), Noting("halves")
    for count in (1, HALVES_FROM - 1, HALVES_FROM):
        backend.logits(pictures(count))
    assert used == ["whole", "whole", "halves"]


@pytest.mark.parametrize(("gain", "threads"), [(0.8, 2), (2.0, 1)])
def test_where_halves_lose_no_second_model_is_kept(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch, gain: float, threads: int
) -> None:
    backend = opened(source, monkeypatch, gain=gain, threads=threads)
    assert backend._halves is None
    assert len(backend._compiled) == 1
    assert backend.logits(pictures(HALVES_FROM)).shape == (HALVES_FROM, 10)


def test_eight_bit_integers_are_computed_whole_unless_halves_are_asked_for(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_backend, "speedup", lambda *_: 2.0)
    assert not open_openvino(source, Settings(threads=2), "int8").tuning["split_batches"]
    assert open_openvino(source, Settings(threads=2, split_batches=True), "int8").tuning["split_batches"]


@pytest.mark.parametrize("split", [True, False])
def test_what_is_given_is_not_measured(source: Checkpoint, monkeypatch: pytest.MonkeyPatch, *, split: bool) -> None:
    def measure(*_: object) -> float:
        raise AssertionError("as beside an engine that serves")

    monkeypatch.setattr(openvino_backend, "speedup", measure)
    assert open_openvino(source, Settings(threads=2, split_batches=split), "float32").tuning["split_batches"] is split
    one_thread = Settings(threads=1, split_batches=split)
    assert not open_openvino(source, one_thread, "float32").tuning["split_batches"]


@pytest.mark.parametrize("gain", [0.8, 2.0])
def test_an_engine_that_is_given_what_another_one_found_is_its_like(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    monkeypatch.setattr(openvino_backend, "speedup", lambda *_: gain)
    settings = Settings(device="cpu", runtime="openvino", threads=2, max_queue_images=256)
    first = load_engine(settings)
    assert first.tuning["split_batches"] is (gain >= MIN_RELATIVE_RATE)
    monkeypatch.setattr(openvino_backend, "speedup", lambda *_: 2.8 - gain)
    assert load_engine(settings.model_copy(update=first.tuning)).tuning == first.tuning


@pytest.mark.parametrize("broken", [0, 1])
def test_a_half_that_fails_waits_for_the_other_and_the_next_batch_is_right(
    source: Checkpoint, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    backend = opened(source, monkeypatch, gain=2.0)
    halves = backend._halves
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
                raise RuntimeError("std::bad_alloc")
            good[self.number].start_async(share_inputs=share_inputs)

        def wait(self) -> None:
            waited.append(self.number)
            good[self.number].wait()

    images = pictures(HALVES_FROM)
    expected = backend.logits(images)
    halves._requests = Request(0), Request(1)
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images)
    assert waited == [1 - broken]
    halves._requests = good
    np.testing.assert_allclose(backend.logits(images), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("whole", "halves", "gain"),
    [([0.02, 0.04], [0.01, 0.04], 2.0), ([0.02, 0.04], [0.04, 0.03], 4 / 3), ([0.01, 0.02], [0.02, 0.04], 0.5)],
)
def test_the_gain_is_what_the_clock_says_that_says_the_most(
    monkeypatch: pytest.MonkeyPatch, whole: list[float], halves: list[float], gain: float
) -> None:
    """Of seconds on the wall and of the processor."""
    ways: dict[str, measured.Candidate] = {"whole": Mock(), "halves": Mock()}
    seconds = {ways["whole"]: whole, ways["halves"]: halves}
    monkeypatch.setattr(measured, "best_times", lambda *_: seconds)
    assert measured.speedup(ways["whole"], ways["halves"], pictures(1)) == pytest.approx(gain)
