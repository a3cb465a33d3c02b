"""Which way computes on CUDA: only what reproduces the eager logits; over lanes that pretend."""

import numpy as np
import pytest
import torch

from app.backends import cuda_backend
from app.backends.cuda_backend import CudaBackend
from app.backends.cuda_lane import CudnnSearch
from app.backends.cuda_proof import ExecutionMode
from tests.conftest import warnings_of
from tests.pretended_lanes import EXAMPLES, SIZES, PretendedEager, PretendedLane, images, logits_of, make


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """Seconds, in a list of one, that pass only where a test says so; of two ways the first one stays."""
    clock = [0.0]
    monkeypatch.setattr(cuda_backend, "CLOCKS", (lambda: clock[0],))
    return clock


def test_each_size_is_proven_once_in_each_lane_before_anything_is_computed_there():
    first, second = PretendedLane(), PretendedLane()
    backend = make([first, second])
    for count in (7, 7, 3):
        np.testing.assert_array_equal(backend.logits(images(count)), logits_of(images(count)))
    assert first.told == [("prepare", 4), ("start", 4, 4), ("start", 4, 4), ("start", 4, 4), ("start", 3, 4)]
    assert second.told == [("prepare", 4), ("start", 4, 4), ("start", 3, 4), ("start", 3, 4)]
    assert backend.eager.batches == [4, 4]
    assert backend.mode == "way 0"


def test_cudnn_searches_for_every_way_before_eager_has_settled_on_its_guess():
    lanes = [PretendedLane(), PretendedLane()]
    backend = make([lanes[0]], [lanes[1]])
    for number, lane in enumerate(lanes):
        lane.prepare = lambda size, number=number: backend.eager.batches.append((number, size))
    backend.logits(images(1))
    assert [*dict.fromkeys(backend.eager.batches)] == [(0, 4), (1, 4), 4, (0, 1), 1]


def test_the_largest_piece_comes_first_in_every_lane_whatever_is_asked_for():
    """Its search must not wait for those of smaller ones, and its memory serves them."""
    lanes = [PretendedLane(), PretendedLane()]
    make(lanes).logits(images(1))
    assert lanes[0].told == [("prepare", 4), ("start", 4, 4), ("prepare", 1), ("start", 1, 1), ("start", 1, 1)]
    assert lanes[1].told == [("prepare", 4), ("start", 4, 4)]


@pytest.mark.parametrize(("seconds", "chosen"), [((3, 2), "way 1"), ((2, 3), "way 0"), ((2, 2), "way 0")])
def test_of_the_ways_that_work_the_quicker_one_is_measured_and_the_other_one_closed(clock, caplog, seconds, chosen):
    def taking(one):
        def answers(images):
            clock[0] += one / 1024
            return logits_of(images)

        return answers

    ways = [[PretendedLane(taking(one)), PretendedLane(taking(one))] for one in seconds]
    backend = make(*ways)
    with caplog.at_level("INFO"):
        np.testing.assert_array_equal(backend.logits(images(3)), logits_of(images(3)))
    assert backend.mode == chosen
    assert [lane.closed for way in ways for lane in way] == [f"way {number}" != chosen for number in (0, 0, 1, 1)]
    first, second = (1000 * 2 * one / 1024 for one in seconds)  # a piece in each of two lanes
    told = f"a batch of 8 images takes {first:.2f} ms by way 0, {second:.2f} ms by way 1: going on with {chosen}"
    assert told in caplog.messages
    assert not warnings_of(caplog)


def test_the_next_checkpoint_may_need_a_finer_precision_which_is_therefore_not_kept():
    assert make([PretendedLane()]).tuning == {"runtime": "torch"}


def test_what_the_search_worked_in_is_given_back_before_ready(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(True))
    make([PretendedLane()]).release_setup_memory()
    assert emptied


def test_how_long_the_search_took_is_told_before_ready(caplog):
    search = CudnnSearch()
    modes = [ExecutionMode("way 0", lambda: [PretendedLane()], search)]
    backend = CudaBackend(PretendedEager(), modes, EXAMPLES, SIZES)
    with caplog.at_level("INFO"):
        backend.release_setup_memory()
    assert caplog.messages == [f"way 0: {search.summary()}"]


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
    assert caplog.messages == ["way 0 works: within 0.50 % of the eager network's logits"]


def test_what_works_for_one_size_and_not_for_another_is_left(caplog):
    lane = PretendedLane(lambda images: logits_of(images) * (1 if len(images) == 4 else 2))
    backend = make([lane])
    backend.logits(images(4))
    assert backend.mode == "way 0"
    np.testing.assert_array_equal(backend.logits(images(9)), logits_of(images(9)))
    assert backend.mode == "eager"
    np.testing.assert_array_equal(backend.logits(images(4)), logits_of(images(4)))
    assert len(warnings_of(caplog)) == 1


def test_the_next_way_is_proven_anew_for_sizes_that_the_last_one_had():
    first, second = PretendedLane(lambda images: logits_of(images) * (1 if len(images) == 4 else 2)), PretendedLane()
    backend = make([first], [second])
    for count in (4, 1):
        backend.logits(images(count))
    backend.logits(images(4))
    assert backend.mode == "way 1"
    assert [told for told in second.told if told[0] == "prepare"] == [("prepare", 4), ("prepare", 1), ("prepare", 4)]


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
