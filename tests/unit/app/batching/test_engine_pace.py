"""What is learned of an engine's pace: from full batches, and from smaller ones that are quicker."""

import pytest

from app.batching.engine_pace import EMA_WEIGHT, EnginePace


def test_nothing_is_known_before_a_full_batch():
    pace = EnginePace()
    pace.batch_ended(3, 0.1, full=False)
    assert (pace.images_per_s, pace.batch_s) == (0.0, 0.1)
    pace.batch_ended(8, 0.1, full=True)
    assert pace.images_per_s == pytest.approx(80)


@pytest.mark.parametrize(("seconds", "rate"), [(1.0, 8), (0.1, 80)])
def test_a_guess_counts_until_a_batch_is_full(seconds, rate):
    pace = EnginePace(20.0)
    pace.batch_ended(1, 0.1, full=False)
    assert pace.images_per_s == 20
    pace.batch_ended(8, seconds, full=True)
    assert pace.images_per_s == pytest.approx(rate)
    pace.batch_ended(8, 8 / (2 * rate), full=True)
    assert pace.images_per_s == pytest.approx(rate / (1 - EMA_WEIGHT / 2))


def test_a_smaller_batch_that_beats_the_guess_is_a_better_guess_and_no_more():
    pace = EnginePace(20.0)
    pace.batch_ended(1, 0.01, full=False)
    assert pace.images_per_s == pytest.approx(100)
    pace.batch_ended(8, 0.02, full=True)
    assert pace.images_per_s == pytest.approx(400)


def test_the_rate_of_the_engine_before_is_a_guess_at_that_of_the_next_one():
    pace = EnginePace()
    for _ in range(50):
        pace.batch_ended(8, 0.02, full=True)
    pace.engine_exchanged()
    assert pace.images_per_s == pytest.approx(400)
    pace.batch_ended(8, 0.1, full=True)
    assert pace.images_per_s == pytest.approx(80)


def test_the_mean_is_of_times_so_that_a_slow_batch_counts():
    pace = EnginePace()
    pace.batch_ended(1, 1.0, full=True)
    pace.batch_ended(1, 11.0, full=True)
    assert 1 / pace.images_per_s == pytest.approx(1.0 + 10 * EMA_WEIGHT)


def test_a_smaller_batch_counts_only_if_it_is_quicker():
    pace = EnginePace()
    pace.batch_ended(8, 0.8, full=True)
    pace.batch_ended(1, 0.5, full=False)
    assert pace.images_per_s == pytest.approx(10)
    pace.batch_ended(1, 0.05, full=False)
    assert 1 / pace.images_per_s == pytest.approx(0.1 - 0.05 * EMA_WEIGHT)
    assert pace.batch_s == 0.05
