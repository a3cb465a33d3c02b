"""Answers that do not depend on the batch: how far they move is measured."""

import numpy as np
import pytest

from app.backends.agreement import max_difference_between_batch_sizes
from app.engine_errors import EngineOutOfMemory

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
