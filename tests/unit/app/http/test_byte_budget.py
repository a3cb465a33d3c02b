"""What all together may hold."""

import pytest

from app.errors import QueueFull
from app.http.byte_budget import ByteBudget


def test_all_bytes_may_be_taken_and_none_beyond_them():
    budget = ByteBudget(10)
    budget.take(4)
    budget.take(6)
    with pytest.raises(QueueFull) as refused:
        budget.take(1)
    assert (budget.held_bytes, refused.value.retry_after_s) == (10, 1)
    budget.give_back(1)
    budget.take(1)


def test_what_was_taken_piece_by_piece_comes_back_whatever_happens():
    budget = ByteBudget(10)

    def fail():
        with budget.hold() as held:
            held.take(2)
            held.take(5)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert budget.held_bytes == 0


def test_what_is_given_back_early_is_given_back_once():
    budget = ByteBudget(10)
    budget.take(1)
    with budget.hold() as held:
        held.take(5)
        held.give_back()
        assert budget.held_bytes == 1
    assert budget.held_bytes == 1
