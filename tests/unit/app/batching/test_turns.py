"""When a batch begins: after the one before it, or beside that one's end."""

import threading
import weakref
from itertools import pairwise

import pytest

from app.batching.turns import Turn
from tests.garbage import no_collection
from tests.noting_event import NotingEvent

STEPS = {
    "nearly done": lambda before, _turn: before.pass_on_early(),
    "full": lambda _before, turn: turn.fill(),
    "done": lambda before, _turn: before.end(),
}


def two():
    before, turn = Turn(), Turn()
    turn.follow(before)
    return before, turn


def has_come(turn):
    return turn._come.is_set()


def test_who_follows_nobody_begins_at_once():
    Turn().wait()


@pytest.mark.parametrize(
    ("first", "last"), [("full", "nearly done"), ("nearly done", "full"), ("nearly done", "done"), ("full", "done")]
)
def test_a_turn_comes_by_whatever_comes_last(first, last):
    before, turn = two()
    turn._come = NotingEvent()
    thread = threading.Thread(target=turn.wait)
    thread.start()
    assert turn._come.waited_for.wait(10)
    STEPS[first](before, turn)
    assert not has_come(turn)
    STEPS[last](before, turn)
    thread.join(10)
    assert not thread.is_alive()


def test_who_comes_to_its_turn_late_does_not_wait():
    before, turn = two()
    before.end()
    turn.wait()


def test_who_follows_another_one_as_it_ends_is_not_left_behind(monkeypatch):
    before, turn = Turn(), Turn()

    def monotonic():  # the other threads' moment, in the midst of `end`
        turn.follow(before)
        turn._look()
        assert not has_come(turn)
        return 1.0

    monkeypatch.setattr("app.batching.turns.time.monotonic", monotonic)
    before.end()
    assert has_come(turn)


@pytest.mark.parametrize(("ended", "counted_s"), [(103.0, 3.0), (99.0, 4.0), (105.5, 2.0)], ids=str)
def test_what_a_batch_took_counts_from_the_end_of_the_one_before(monkeypatch, ended, counted_s):
    """It took four seconds, until 106. In the last case the other thread was late to say that it had ended."""
    before, turn = two()
    before.end()
    before._ended = ended
    monkeypatch.setattr("app.batching.turns.time.monotonic", lambda: 106.0)
    assert turn.own_seconds(4.0) == counted_s


def test_what_a_batch_took_counts_by_half_while_the_one_before_has_not_ended_and_whole_if_there_was_none():
    _before, turn = two()
    assert turn.own_seconds(4.0) == 2.0
    assert Turn().own_seconds(4.0) == 4.0


def test_a_turn_that_is_held_holds_none_of_those_that_followed():
    """Of a batch that failed, by its stack."""
    every = [Turn() for _ in range(3)]
    for before, turn in pairwise(every):
        turn.follow(before)
    for turn in every:
        turn.end()
        turn.end()
    first, last = every[0], weakref.ref(every[2])
    with no_collection():
        del every, before, turn
        assert last() is None
    assert first._next is None
