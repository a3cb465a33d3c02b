"""Which way computes on CUDA: only what reproduces the eager logits; over lanes that pretend."""

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.cuda_backend import CudaBackend, ExecutionMode, distinct, open_cuda_backend
from app.batching.batches import EngineBroken, EngineOutOfMemory
from app.settings import SHIPPED_WEIGHTS
from model import checkpoint
from tests.conftest import warnings_of
from tests.fake_cuda import NO_ENGINE

SIZES = (1, 2, 4)
EXAMPLES = np.random.default_rng(0).integers(0, 256, (3, 3, 2, 2), dtype=np.uint8)


def logits_of(images):
    return images.reshape(len(images), -1)[:, :5].astype(np.float32)


class PretendedEager:
    device = "cuda"  # only a name here: the errors are those of a CUDA device
    dtype = "float32"

    def __init__(self):
        self.batches = []
        self.errors = []
        self.closed = False

    def logits(self, images):
        self.batches.append(len(images))
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return logits_of(images)

    def close(self):
        self.closed = True


class PretendedLane:
    """Computes `answers(images)`; raises one of `errors` at each step that meets one."""

    def __init__(self, answers=logits_of):
        self.answers = answers
        self.errors = {"prepare": [], "start": [], "close": []}
        self.told = []
        self.closed = False

    def _step(self, name):
        if self.errors[name]:
            raise self.errors[name].pop(0)

    def prepare(self, size):
        self.told.append(("prepare", size))
        self._step("prepare")

    def start(self, images, size):
        self.told.append(("start", len(images), size))
        self._step("start")
        self._logits = self.answers(images)

    def finish(self):
        return self._logits

    def close(self):
        self.closed = True
        self._step("close")


def images(count):
    return np.random.default_rng(count).integers(0, 256, (count, 3, 2, 2), dtype=np.uint8)


def make(*ways):
    """A backend over ways "way 0", "way 1", ..., each a list of lanes or an error that opening them raises."""

    def opener(lanes):
        def open_lanes():
            if isinstance(lanes, Exception):
                raise lanes
            return lanes

        return open_lanes

    named = [ExecutionMode(f"way {number}", opener(lanes)) for number, lanes in enumerate(ways)]
    return CudaBackend(PretendedEager(), named, EXAMPLES, SIZES)


def test_each_size_is_proven_once_in_each_lane_before_anything_is_computed_there():
    first, second = PretendedLane(), PretendedLane()
    backend = make([first, second])
    for count in (7, 7, 3):
        np.testing.assert_array_equal(backend.logits(images(count)), logits_of(images(count)))
    assert first.told == [("prepare", 4), ("start", 4, 4), ("start", 4, 4), ("start", 4, 4), ("start", 3, 4)]
    assert second.told == [("prepare", 4), ("start", 4, 4), ("start", 3, 4), ("start", 3, 4)]
    assert backend.eager.batches == [4, 4]
    assert backend.mode == "way 0"


def test_cudnn_searches_for_a_lane_before_eager_has_settled_on_its_guess():
    lane = PretendedLane()
    backend = make([lane])
    lane.prepare = lambda _size: backend.eager.batches.append("prepare")
    backend.logits(images(1))
    assert backend.eager.batches == ["prepare", 1]


def test_what_the_search_worked_in_is_given_back_before_ready(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    make([PretendedLane()]).settle()
    assert emptied


def swapped(images):
    return logits_of(images)[::-1]


def of_nothing(images):
    return logits_of(np.zeros_like(images))


def a_little_off(images):
    return logits_of(images) * 1.03


def not_numbers(images):
    return logits_of(images) * np.float32("nan")


@pytest.mark.parametrize("answers", [swapped, of_nothing, a_little_off, not_numbers])
def test_what_differs_is_left_for_the_next_way_for_good(answers, caplog):
    wrong, right = PretendedLane(answers), PretendedLane()
    backend = make([wrong], [right])
    for _ in range(2):
        np.testing.assert_array_equal(backend.logits(images(3)), logits_of(images(3)))
    assert backend.mode == "way 1"
    assert wrong.told == [("prepare", 4), ("start", 4, 4)]
    assert wrong.closed
    (warning,) = warnings_of(caplog)
    assert warning.startswith("way 0 does not work here, going on with way 1: Differs: logits of 4 images are ")


def test_a_rounding_error_is_none(caplog):
    backend = make([PretendedLane(lambda images: logits_of(images) * 1.005)])
    with caplog.at_level("INFO"):
        backend.logits(images(3))
        backend.logits(images(1))
    assert backend.mode == "way 0"
    assert caplog.messages == ["computing by way 0: within 0.50 % of the eager network's logits"]


def test_what_works_for_one_size_and_not_for_another_is_left(caplog):
    lane = PretendedLane(lambda images: logits_of(images) * (1 if len(images) < 4 else 2))
    backend = make([lane])
    backend.logits(images(1))
    assert backend.mode == "way 0"
    np.testing.assert_array_equal(backend.logits(images(9)), logits_of(images(9)))
    assert backend.mode == "eager"
    np.testing.assert_array_equal(backend.logits(images(1)), logits_of(images(1)))
    assert len(warnings_of(caplog)) == 1


def test_the_next_way_is_proven_anew_for_sizes_that_the_last_one_had():
    first, second = PretendedLane(lambda images: logits_of(images) * (1 if len(images) < 4 else 2)), PretendedLane()
    backend = make([first], [second])
    for count in (1, 4, 1):
        backend.logits(images(count))
    assert [told for told in second.told if told[0] == "prepare"] == [("prepare", 4), ("prepare", 1)]


@pytest.mark.parametrize("step", ["prepare", "start"])
def test_what_raises_is_left_and_the_last_resort_is_eager(step, caplog):
    lanes = [PretendedLane(), PretendedLane()]
    for lane in lanes:
        lane.errors[step] = [RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")]
    backend = make([lanes[0]], [lanes[1]])
    for _ in range(2):
        np.testing.assert_array_equal(backend.logits(images(3)), logits_of(images(3)))
    assert all(lane.closed for lane in lanes)
    assert warnings_of(caplog) == [
        f"way {number} does not work here, going on with {after}: RuntimeError: "
        "CUDA error: operation not permitted when stream is capturing"
        for number, after in ((0, "way 1"), (1, "eager"))
    ]
    assert backend.eager.batches[-2:] == [3, 3]


def test_lanes_that_cannot_be_opened_or_closed_do_not_matter(caplog):
    lane = PretendedLane(swapped)
    lane.errors["close"] = [RuntimeError("CUDA error")]
    backend = make(RuntimeError("no stream"), [lane])
    np.testing.assert_array_equal(backend.logits(images(3)), logits_of(images(3)))
    assert backend.mode == "eager"
    assert len(warnings_of(caplog)) == 3


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
    lane.errors["prepare"] = [error]
    backend = make([lane])
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(4))
    np.testing.assert_array_equal(backend.logits(images(4)), logits_of(images(4)))
    assert backend.mode == "way 0"
    assert not warnings_of(caplog)


def test_cudnn_that_finds_nothing_for_another_size_of_what_it_has_computed_lacks_memory(caplog):
    lane = PretendedLane()
    backend = make([lane])
    backend.logits(images(1))
    lane.errors["prepare"] = [RuntimeError(NO_ENGINE)]
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(4))
    np.testing.assert_array_equal(backend.logits(images(4)), logits_of(images(4)))
    assert backend.mode == "way 0"
    assert not warnings_of(caplog)


def test_cudnn_that_finds_nothing_from_the_first_has_nothing():
    lane = PretendedLane()
    lane.errors["prepare"] = [RuntimeError(NO_ENGINE)]
    backend = make([lane], [PretendedLane()])
    backend.logits(images(4))
    assert backend.mode == "way 1"


def test_too_little_memory_is_seen_through_the_error_that_ends_the_recording():
    lane = PretendedLane()
    ended = RuntimeError("CUDA error: operation failed due to a previous error during capture")
    ended.__context__ = torch.OutOfMemoryError("CUDA out of memory")
    lane.errors["prepare"] = [ended]
    backend = make([lane])
    with pytest.raises(EngineOutOfMemory):
        backend.logits(images(4))
    assert backend.mode == "way 0"


@pytest.mark.parametrize("error", [EngineOutOfMemory(), EngineBroken("the CUDA context is lost")])
def test_errors_of_the_eager_network_are_its_own(error):
    backend = make([PretendedLane()])
    backend.eager.errors = [error]
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


def test_no_two_pictures_are_alike():
    assert len({picture.tobytes() for picture in distinct(EXAMPLES, 6)}) == 6


def test_close_closes_all():
    lane = PretendedLane()
    backend = make([lane])
    backend.logits(images(1))
    backend.close()
    assert lane.closed
    assert backend.eager.closed


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
        plain.open()
    assert [lane.closed for lane in opened] == [True]
    assert searches[0] is searches[1]  # one time for all lanes
