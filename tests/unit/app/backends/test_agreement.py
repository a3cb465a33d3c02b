"""Answers that do not depend on the batch: how far they move is measured."""

import numpy as np
import pytest

from app.backends.agreement import (
    COMPARED,
    LEAST_COMPARED,
    compared_pictures,
    distinct,
    max_difference_between_batch_sizes,
    probability_difference,
)
from app.engine_errors import EngineOutOfMemory
from model.calibration import Calibration

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
    assert max_difference_between_batch_sizes(run, PICTURES, (1, 2, 8)) == 0
    assert seen == [1, 1, 1, 1, 1, 8, 2, 2, 2]


@pytest.mark.parametrize("size", [1, 2, 8])
def test_whichever_size_moves_answers_is_seen(size):
    run, _ = moving(0.01, {size})
    assert max_difference_between_batch_sizes(run, PICTURES, (1, 2, 8)) == pytest.approx(0.01, abs=1e-6)


def test_no_size_is_tried_after_one_that_moves_too_far():
    run, seen = moving(0.01, {8})
    max_difference_between_batch_sizes(run, PICTURES, (1, 2, 8))
    assert seen == [1, 1, 1, 1, 1, 8]


def test_answers_that_are_no_numbers_never_agree():
    run, _ = moving(np.nan, {2})
    assert max_difference_between_batch_sizes(run, PICTURES, (1, 2, 8)) == np.inf


def test_a_size_that_does_not_fit_counts_for_nothing():
    agreeing, _ = moving(0, ())

    def run(images):
        if len(images) == 8:
            raise EngineOutOfMemory
        return agreeing(images)

    assert max_difference_between_batch_sizes(run, PICTURES, (1, 2, 8)) == 0


def test_no_two_pictures_are_alike():
    assert len({picture.tobytes() for picture in distinct(PICTURES, 12)}) == 12


@pytest.mark.parametrize(("side", "count"), [(32, COMPARED), (64, COMPARED), (96, 10), (224, LEAST_COMPARED)])
def test_large_pictures_are_compared_by_fewer(side, count):
    examples = np.random.default_rng(0).integers(0, 256, (16, 3, side, side), dtype=np.uint8)
    pictures = compared_pictures(examples)
    assert pictures.shape == (count, 3, side, side)
    assert len({picture.tobytes() for picture in pictures}) == count


def test_after_the_examples_come_averages_of_two():
    pictures = compared_pictures(PICTURES)
    np.testing.assert_array_equal(pictures[:5], PICTURES)
    exact = (PICTURES.astype(int) + PICTURES[[4, 0, 1, 2, 3]]) / 2
    assert np.abs(pictures[5:10] - exact).max() == 0.5  # without an overflow of eight bits


def test_what_counts_is_by_how_much_a_calibrated_probability_moves():
    even, sure = np.array([[0.0, 0.0]], np.float32), np.array([[0.0, 20.0]], np.float32)
    error = np.array([[0.0, 0.04]], np.float32)
    cold, hot = Calibration(temperature=1.0), Calibration(temperature=10.0)
    assert probability_difference(cold, even + error, even) == pytest.approx(0.01, abs=1e-5)
    assert probability_difference(hot, even + error, even) == pytest.approx(0.001, abs=1e-5)
    assert probability_difference(cold, sure + error, sure) < 1e-6
    assert np.isnan(probability_difference(cold, even * np.nan, even))
