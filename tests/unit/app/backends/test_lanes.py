"""Pieces of a batch over lanes that only pretend: where each piece goes, and who waits for whom."""

import numpy as np
import pytest

from app.backends.lanes import Lanes, Piece

SIZES = (1, 2, 4)


class NumberedLane:
    """Answers with each image's first number, out of one buffer for ever; says what happens in `told`."""

    def __init__(self, number, told):
        self.number = number
        self.told = told
        self.fails = False
        self.closed = False
        self._received = np.zeros((SIZES[-1], 1), np.float32)
        self._count = 0

    def start(self, images, size):
        self.told.append(("start", self.number, len(images), size))
        if self.fails:
            raise RuntimeError("as asked for")
        self._received[:] = -1
        self._received[: len(images), 0] = images[:, 0, 0, 0]
        self._count = len(images)

    def finish(self):
        self.told.append(("finish", self.number))
        return self._received[: self._count]

    def close(self):
        self.closed = True


@pytest.fixture
def told():
    return []


@pytest.fixture
def lanes(told):
    return Lanes([NumberedLane(0, told), NumberedLane(1, told)], SIZES)


def images(count):
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 3, 2, 2))


@pytest.mark.parametrize(
    ("count", "pieces"),
    [
        (1, [Piece(0, 1, 1, 0)]),
        (3, [Piece(0, 3, 4, 0)]),
        (4, [Piece(0, 4, 4, 0)]),
        (5, [Piece(0, 4, 4, 0), Piece(4, 5, 1, 1)]),
        (11, [Piece(0, 4, 4, 0), Piece(4, 8, 4, 1), Piece(8, 11, 4, 0)]),
    ],
)
def test_a_batch_is_cut_and_padded(lanes, count, pieces):
    assert lanes.pieces(count) == pieces


@pytest.mark.parametrize("count", range(1, 22))
def test_answers_come_in_the_order_of_the_images(lanes, count):
    np.testing.assert_array_equal(lanes.run(images(count))[:, 0], np.arange(count))


def test_a_lane_is_waited_for_once_the_other_one_has_work(lanes, told):
    lanes.run(images(14))
    assert told == [
        ("start", 0, 4, 4),
        ("start", 1, 4, 4),
        ("finish", 0),
        ("start", 0, 4, 4),
        ("finish", 1),
        ("start", 1, 2, 2),
        ("finish", 0),
        ("finish", 1),
    ]


def test_a_small_batch_takes_one_lane(lanes, told):
    lanes.run(images(3))
    assert told == [("start", 0, 3, 4), ("finish", 0)]


def test_a_batch_after_one_that_failed_gets_its_own_answers(lanes):
    lanes.lanes[1].fails = True
    with pytest.raises(RuntimeError, match="as asked for"):
        lanes.run(images(8))
    lanes.lanes[1].fails = False
    np.testing.assert_array_equal(lanes.run(images(9)[::-1])[:, 0], np.arange(9)[::-1])


def test_all_lanes_are_closed(lanes):
    lanes.close()
    assert all(lane.closed for lane in lanes.lanes)
