"""The choice between two ways to compute a batch, in app/backends/quicker_way.py, with a clock that pretends."""

import numpy as np
import pytest

from app.backends.quicker_way import TRIAL_EVERY, TRIALS, QuickerWay

FIRST_VERDICT = 2 * TRIALS + 1  # batches: each trial is judged with the one after it
LATER_VERDICT = TRIALS * TRIAL_EVERY
SIZES = 2, 8, 16, 6  # of batches, for which both are set up


class Machine:
    """A clock, and two ways that move it on by so many seconds for an image."""

    def __init__(self, first_s: float, second_s: float) -> None:
        self.seconds = {"first": first_s, "second": second_s}
        self.now = 0.0
        self.used: list[str] = []
        self.ways = QuickerWay(Way(self, "first"), Way(self, "second"), lambda: self.now)
        for images in SIZES:
            self.serve(1, images)

    def serve(self, batches: int, images: int = 8) -> list[str]:
        """Compute so many batches and return which way each went."""
        self.used.clear()
        for _ in range(batches):
            self.ways.logits(np.zeros((images, 3, 4, 4), np.uint8))
        return list(self.used)


class Way:
    """Answers with its name's length for each image."""

    def __init__(self, machine: Machine, name: str) -> None:
        self.machine, self.name = machine, name

    def logits(self, images: np.ndarray) -> np.ndarray:
        self.machine.used.append(self.name)
        self.machine.now += len(images) * self.machine.seconds[self.name]
        return np.full((len(images), 10), len(self.name), np.float32)


def test_batches_of_a_new_size_go_both_ways_and_say_nothing_of_either() -> None:
    machine = Machine(1.0, 2.0)
    assert machine.serve(1, images=5) == ["second", "first"]
    machine.seconds["first"] = 100.0
    for images in range(100, 200):
        machine.serve(1, images)
    machine.seconds["first"] = 1.0
    machine.serve(FIRST_VERDICT)
    assert machine.serve(TRIAL_EVERY).count("second") == 1


def test_both_are_tried_in_turns_until_it_is_known_which_is_quicker() -> None:
    assert Machine(1.0, 2.0).serve(6) == ["first", "second"] * 3


@pytest.mark.parametrize(("seconds", "quicker"), [((1.0, 1.01), "first"), ((1.01, 1.0), "second")])
def test_the_quicker_one_gets_all_batches_but_one_in_sixteen(seconds: tuple[float, float], quicker: str) -> None:
    machine = Machine(*seconds)
    machine.serve(FIRST_VERDICT)
    assert machine.serve(10 * TRIAL_EVERY).count(quicker) == 10 * (TRIAL_EVERY - 1)


def test_it_changes_when_the_other_one_becomes_quicker_and_back_again() -> None:
    machine = Machine(1.0, 1.2)
    machine.serve(FIRST_VERDICT)
    for name, seconds in (("first", 1.5), ("second", 2.0)):
        machine.seconds[name] = seconds
        machine.serve(LATER_VERDICT)
        assert machine.serve(TRIAL_EVERY).count(name) == 1


def test_single_batches_that_a_neighbour_delays_change_nothing() -> None:
    machine = Machine(1.0, 1.2)
    machine.serve(FIRST_VERDICT)
    for number in range(10):
        machine.seconds["first"] = 9.0 if number % 3 == 0 else 1.0
        assert machine.serve(TRIAL_EVERY).count("first") == TRIAL_EVERY - 1


def test_a_machine_that_gets_slower_for_both_changes_nothing() -> None:
    machine = Machine(1.0, 1.1)
    machine.serve(FIRST_VERDICT)
    for factor in (4.0, 0.1):
        machine.seconds = {"first": factor, "second": 1.1 * factor}
        assert machine.serve(LATER_VERDICT).count("second") == TRIALS


def test_batches_of_different_sizes_are_compared_by_the_image() -> None:
    machine = Machine(1.0, 1.1)
    for number in range(FIRST_VERDICT):
        machine.serve(1, images=16 if number % 2 == 0 else 6)
    assert machine.serve(TRIAL_EVERY - 1).count("first") == TRIAL_EVERY - 2


def test_each_batch_gets_the_answer_of_the_way_it_went() -> None:
    machine = Machine(1.0, 2.0)
    answers = [machine.ways.logits(np.zeros((2, 3, 4, 4), np.uint8)) for _ in range(2)]
    assert [answer.tolist() for answer in answers] == [[[5.0] * 10] * 2, [[6.0] * 10] * 2]


def test_a_batch_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(1.0, 2.0)
    machine.serve(1)
    with monkeypatch.context() as context:
        context.setattr(Way, "logits", fail)
        with pytest.raises(RuntimeError, match="no memory"):
            machine.serve(1)
    machine.serve(FIRST_VERDICT)
    assert machine.serve(10 * TRIAL_EVERY).count("first") == 10 * (TRIAL_EVERY - 1)


def fail(*_: object) -> None:
    raise RuntimeError("no memory")
