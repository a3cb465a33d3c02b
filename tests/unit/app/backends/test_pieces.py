"""Large batches in pieces, two at the same time, in app/backends/openvino_backend.py."""

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest

from app.backends import openvino_backend
from app.backends.agreement import BOUND, compared_pictures, probability_difference
from app.backends.openvino_backend import PIECES_FROM, OpenVinoBackend, open_openvino, pieces_of
from app.engine import load_engine
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model.checkpoint import Checkpoint
from tests.garbage import no_collection


def opened(source: Checkpoint, *, split: bool | None, threads: int = 2, precision: str = "float32") -> OpenVinoBackend:
    return open_openvino(source, Settings(threads=threads, split_batches=split), precision)


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_pieces_answer_as_the_whole_does_and_in_its_order(source: Checkpoint, precision: str) -> None:
    backend = opened(source, split=True, precision=precision)
    for count in (PIECES_FROM, PIECES_FROM + 1, 40, 7):
        images = pictures(count)
        expected = backend._whole.logits(images)
        np.testing.assert_allclose(backend.logits(images), expected, atol=1e-4 * np.abs(expected).max())
    images = compared_pictures(source.self_test_images)
    off = probability_difference(source.metadata.calibration, backend.logits(images), backend._whole.logits(images))
    assert off <= BOUND


TWO_THREADS = {2: 2, 5: 2, 6: 4, 16: 4, 32: 4, 33: 6, 64: 8, 65: 10, 1024: 128}
SIXTEEN_THREADS = {6: 2, 47: 2, 48: 4, 512: 8, 513: 10}


@pytest.mark.parametrize(("threads", "pieces"), [(2, TWO_THREADS), (16, SIXTEEN_THREADS)])
def test_pieces_are_an_even_number_and_small_enough_to_be_shared_out(threads: int, pieces: dict[int, int]) -> None:
    assert {images: pieces_of(images, threads) for images in pieces} == pieces


def test_two_pieces_at_a_time_are_computed_and_all_are_handed_over_at_once(source: Checkpoint) -> None:
    backend = opened(source, split=True)
    assert backend._compiled[-1].get_property("NUM_STREAMS") == 2
    pieces = backend._pieces
    assert isinstance(pieces, openvino_backend.Pieces)
    events: list[str] = []

    class Request:
        def __init__(self, inner: openvino_backend.InferRequest) -> None:
            self.inner = inner

        def start_async(self, *, share_inputs: bool) -> None:
            events.append("started")
            self.inner.start_async(share_inputs=share_inputs)

        def wait(self) -> None:
            events.append("waited")
            self.inner.wait()

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

    pieces._idle_requests = [Request(backend._compiled[-1].create_infer_request()) for _ in range(4)]
    assert backend.logits(pictures(12)).shape == (12, 10)
    assert events == ["started"] * 4 + ["waited"] * 4
    events.clear()
    backend.logits(pictures(12), lambda: events.append("nearly done"))  # the last two are being computed
    assert events == ["started"] * 4 + ["waited"] * 2 + ["nearly done"] + ["waited"] * 2


def test_a_second_batch_finds_all_that_it_needs(source: Checkpoint) -> None:
    """Made beside the first one, it would wait for what that computes, with Python's lock."""
    backend = opened(source, split=True)
    backend.logits(pictures(32))
    backend.release_setup_memory()
    pieces = backend._pieces
    assert pieces
    assert len(set(map(id, pieces._idle_requests))) == 2 * pieces_of(32, 2)


def test_where_all_pieces_are_computed_at_once_it_is_never_nearly_done(source: Checkpoint) -> None:
    backend = opened(source, split=True, threads=4)
    assert pieces_of(PIECES_FROM, 4) == openvino_backend.STREAMS
    for count in (1, PIECES_FROM - 1, PIECES_FROM):
        assert backend.logits(pictures(count), lambda: pytest.fail("nearly done")).shape == (count, 10)


def test_a_second_batch_begins_beside_the_end_of_the_first_and_both_are_right(source: Checkpoint) -> None:
    backend = opened(source, split=True)
    assert backend.overlaps
    images = pictures(32)
    expected = backend.logits(images)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(5):
            begun: list[Future[np.ndarray]] = []
            first = backend.logits(images, lambda: begun.append(pool.submit(backend.logits, images[::-1])))  # noqa: B023
            np.testing.assert_array_equal(first, expected)
            np.testing.assert_allclose(begun[0].result(30), expected[::-1], atol=1e-4 * np.abs(expected).max())
    requests = backend._pieces._idle_requests if backend._pieces else []
    assert len(requests) == len(set(map(id, requests)))


def test_two_small_batches_at_once_get_their_own_answers(source: Checkpoint) -> None:
    """As where most of a full one was given up."""
    backend = opened(source, split=True)
    batches = [pictures(2), pictures(4)[2:]]
    expected = [backend.logits(images) for images in batches]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            for right, logits in zip(expected, pool.map(backend.logits, batches), strict=True):
                np.testing.assert_array_equal(logits, right)


def test_only_large_batches_are_divided(source: Checkpoint) -> None:
    backend = opened(source, split=True)
    used: list[str] = []

    class Noting:
        def __init__(self, name: str) -> None:
            self.name = name

        def logits(self, images: np.ndarray, *_nearly_done: object) -> np.ndarray:
            used.append(self.name)
            return np.zeros((len(images), 10), np.float32)

    backend._whole, backend._pieces = Noting("whole"), Noting("pieces")  # type: ignore[assignment]
    for count in (1, PIECES_FROM - 1, PIECES_FROM):
        backend.logits(pictures(count))
    assert used == ["whole", "whole", "pieces"]


@pytest.mark.parametrize(
    ("split", "threads", "batch_sizes"),
    [(False, 2, None), (None, 1, None), (True, 1, None), (None, 2, (1, 2, PIECES_FROM - 1))],
)
def test_where_pieces_are_not_wanted_or_would_never_come_there_is_no_second_model(
    source: Checkpoint, split: bool | None, threads: int, batch_sizes: tuple[int, ...] | None
) -> None:
    settings = Settings(threads=threads, split_batches=split, batch_sizes=batch_sizes)
    backend = open_openvino(source, settings, "float32")
    assert len(backend._compiled) == 1
    assert not backend.overlaps
    assert backend.logits(pictures(PIECES_FROM)).shape == (PIECES_FROM, 10)


@pytest.mark.parametrize("split", [None, True])
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_large_batches_are_computed_in_pieces_where_nothing_else_is_asked_for(
    source: Checkpoint, precision: str, split: bool | None
) -> None:
    backend = opened(source, split=split, precision=precision)
    assert isinstance(backend._pieces, openvino_backend.Pieces)


@pytest.mark.parametrize("split", [None, True])
@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("factor", [1.01, np.nan])
def test_pieces_that_answer_otherwise_are_warned_of_and_left_out_unless_they_are_asked_for(
    source: Checkpoint,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    precision: str,
    factor: float,
    split: bool | None,
) -> None:
    """A hundredth of the logits is little, but moves the probabilities of what is not certain by 0.002 and more."""
    right = openvino_backend.Pieces.logits
    monkeypatch.setattr(openvino_backend.Pieces, "logits", lambda *given: right(*given) * np.float32(factor))
    backend = opened(source, split=split, precision=precision)
    assert backend.overlaps is (split is True)
    assert len(backend._compiled) == (2 if split else 1)
    (warning,) = [message for message in caplog.messages if "pieces" in message]
    assert warning.startswith("batches are computed in pieces" if split else "batches are not computed in pieces")


@pytest.mark.parametrize("split", [None, True, False])
def test_a_reload_splits_batches_as_the_settings_say(source: Checkpoint, split: bool | None) -> None:
    sizes = None if split is None else (1, 2 * PIECES_FROM)  # measuring takes seconds, and once is enough
    settings = Settings(device="cpu", runtime="openvino", threads=2, split_batches=split, batch_sizes=sizes)
    first = load_engine(settings)
    second = load_engine(settings.model_copy(update=first.tuning))
    assert second.tuning == first.tuning
    for engine in (first, second):
        assert (engine.backend._pieces is None) is (split is False)


@pytest.mark.parametrize(
    ("broken", "error", "seen"),
    [
        (0, RuntimeError("std::bad_alloc"), EngineOutOfMemory),
        (1, RuntimeError("std::bad_alloc"), EngineOutOfMemory),
        (3, MemoryError(), MemoryError),
    ],
)
def test_a_piece_that_fails_waits_for_the_others_and_the_next_batch_is_right(
    source: Checkpoint, broken: int, error: Exception, seen: type[Exception]
) -> None:
    backend = opened(source, split=True)
    images = pictures(2 * PIECES_FROM)
    expected = backend.logits(images)
    pieces = backend._pieces
    assert isinstance(pieces, openvino_backend.Pieces)
    good = list(pieces._idle_requests)
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

    numbers = range(len(good))
    pieces._idle_requests = [Request(number) for number in reversed(numbers)]  # the last one is taken first
    with pytest.raises(seen):
        backend.logits(images, lambda: pytest.fail("no other batch is to begin"))
    assert waited == [number for number in numbers if number != broken]
    assert len(pieces._idle_requests) == len(good)
    pieces._idle_requests = good
    np.testing.assert_allclose(backend.logits(images), expected, atol=1e-4)


def test_pieces_that_failed_leave_none_of_their_images(source: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    class Request:
        def set_input_tensor(self, _tensor: object) -> None:
            raise RuntimeError("std::bad_alloc")

    backend = opened(source, split=True)
    pieces = backend._pieces
    assert isinstance(pieces, openvino_backend.Pieces)
    monkeypatch.setattr(pieces, "_idle_request", Request)
    images = pictures(2 * PIECES_FROM)
    kept = weakref.ref(images)
    with no_collection():
        with suppress(EngineOutOfMemory):
            pytest.fail(str(backend.logits(images)))
        del images
        assert kept() is None
