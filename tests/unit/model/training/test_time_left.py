"""How long the rest of a run is said to take."""

from dataclasses import replace

import pytest

from model.training.recipe import Recipe
from model.training.time_left import TimeLeft, duration_in_words

RECIPE = replace(Recipe(), phases=((16, 2), (32, 3)))  # of ten steps an epoch


def begun(step: int = 0) -> TimeLeft:
    left = TimeLeft(RECIPE, 10)
    left.begin(step, now=1000.0)
    return left


def test_sizes_that_are_still_to_come_count_by_their_pixels() -> None:
    left = begun()
    left.note(5, now=1010.0)  # 2 s a step of 16 x 16
    assert left.seconds() == pytest.approx(15 * 2 + 30 * 2 * 4)


def test_each_size_counts_by_its_own_steps_once_there_are_some() -> None:
    left = begun()
    left.note(10, now=1020.0)
    left.note(20, now=1060.0)  # 3 s a step over both epochs
    assert left.seconds() == pytest.approx(30 * 3 * 4)
    left.note(25, now=1065.0)  # 1 s a step, which is not like the others
    assert left.seconds() == pytest.approx(25 * 1)


def test_a_size_that_comes_again_counts_by_the_steps_that_it_had() -> None:
    left = TimeLeft(replace(Recipe(), phases=((16, 1), (32, 1), (16, 1))), 10)
    left.begin(0, now=0.0)
    left.note(10, now=20.0)
    left.note(15, now=35.0)
    assert left.seconds() == pytest.approx(5 * 3 + 10 * 2)


def test_what_comes_after_an_epochs_last_step_counts_with_its_steps() -> None:
    left = begun()
    left.note(10, now=1020.0)
    left.note(10, now=1030.0)  # it was scored and saved
    assert left.seconds() == pytest.approx(10 * 3 + 30 * 3 * 4)


def test_a_resumed_run_counts_by_the_steps_of_this_process_alone() -> None:
    left = begun(step=40)
    left.note(45, now=1005.0)
    assert left.seconds() == pytest.approx(5 * 1)


def test_after_the_last_step_nothing_is_left() -> None:
    left = begun(step=49)
    left.note(50, now=1001.0)
    assert left.seconds() == 0


def test_without_a_step_it_cannot_be_told() -> None:
    left = begun(step=10)
    left.note(10, now=1001.0)
    assert left.seconds() is None


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (59.6, "1 min 0 s"),
        (61, "1 min 1 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 0 min"),
        (1e5, "27 h 46 min"),
    ],
)
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words
