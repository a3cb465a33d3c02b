"""The choice between two ways to compute a batch, in app/backends/faster_of_two.py, with a clock that pretends."""

import random
from itertools import pairwise

import numpy as np
import pytest

from app.backends.faster_of_two import TRIAL_EVERY, TRIALS, FasterOfTwo
from app.engine_errors import EngineBroken

FIRST_VERDICT = 2 * TRIALS + 1  # batches: each trial is judged with the one after it
LATER_VERDICT = TRIALS * TRIAL_EVERY
SIZES = 2, 8, 16, 6  # of batches, for which both are set up


class Machine:
    """A clock, and two ways that move it on by so many seconds for an image."""

    def __init__(self, first_s: float, second_s: float) -> None:
        self.seconds = {"first": first_s, "second": second_s}
        self.now = 0.0
        self.used: list[str] = []
        self.ways = FasterOfTwo(Way(self, "first"), Way(self, "second"), lambda: self.now)
        for images in SIZES:
            self.serve(1, images)
        self.ways.begin_trials()

    def cost(self, images: int) -> float:
        """How many times the seconds of one image a batch takes."""
        return images

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
        self.machine.now += self.machine.cost(len(images)) * self.machine.seconds[self.name]
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


class UnevenMachine(Machine):
    """An image takes longer in a small batch: a batch of n takes n ** 0.95 times the seconds of one, and some noise."""

    noise = random.Random(1)

    def cost(self, images: int) -> float:
        return images**0.95 * (1 + 0.02 * self.noise.random())

    def changes(self, sizes: list[int]) -> list[str]:
        """Compute batches of these sizes and return the ways that became the usual one."""
        for images in {*sizes}:
            self.serve(1, images)
        usual = [self.usual()]
        for images in sizes:
            self.serve(1, images)
            usual.append(self.usual())
        return [after for before, after in pairwise(usual) if after != before]

    def usual(self) -> str:
        assert isinstance(self.ways._usual, Way)
        return self.ways._usual.name


RANDOM_SIZES = random.Random(2).choices([6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64], k=2000)


@pytest.mark.parametrize(
    "sizes",
    [[32, 8] * 1000, [8, 32] * 1000, [8, 16, 32] * 700, [8, 16, 32, 12, 20] * 400, RANDOM_SIZES],
    ids=["in turns", "in other turns", "three", "five", "random"],
)
@pytest.mark.parametrize(("seconds", "changes"), [((1.0, 1.03), []), ((1.03, 1.0), ["second"])])
def test_sizes_that_vary_hide_nothing_and_make_it_change_no_more_often(
    sizes: list[int], seconds: tuple[float, float], changes: list[str]
) -> None:
    assert UnevenMachine(*seconds).changes(sizes) == changes


def test_a_pace_that_changes_for_both_while_sizes_vary_changes_nothing() -> None:
    machine = UnevenMachine(1.0, 1.1)
    for factor in (1.0, 10.0, 0.1, 0.2, 0.3, 0.2, 0.24, 0.2):
        machine.seconds = {"first": factor, "second": 1.1 * factor}
        assert machine.changes(RANDOM_SIZES) == []


def test_all_goes_one_way_until_trials_begin() -> None:
    machine = Machine(1.0, 2.0)
    machine.ways = FasterOfTwo(Way(machine, "first"), Way(machine, "second"), lambda: machine.now)
    assert machine.serve(20) == ["second", *["first"] * 20]
    machine.ways.begin_trials()
    assert machine.serve(4) == ["first", "second"] * 2


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


class Failing(Way):
    """Fails when it is used."""

    error: Exception = RuntimeError("no memory")

    def logits(self, images: np.ndarray) -> np.ndarray:
        super().logits(images)
        raise self.error


def test_while_one_way_fails_the_other_one_answers(caplog: pytest.LogCaptureFixture) -> None:
    machine = Machine(1.0, 0.5)
    machine.ways._other = Failing(machine, "second")
    for images in (8, 5):  # 5 is a new size
        for _ in range(3 * FIRST_VERDICT):
            answer = machine.ways.logits(np.zeros((images, 3, 4, 4), np.uint8))
            assert answer.tolist() == [[5.0] * 10] * images
    assert machine.serve(10 * TRIAL_EVERY).count("second") == 10
    assert caplog.text.count("no memory") == 1
    machine.ways._other = Way(machine, "second")
    machine.serve(LATER_VERDICT)
    assert machine.serve(TRIAL_EVERY).count("second") == TRIAL_EVERY - 1


def test_an_engine_that_is_broken_is_told_of_whichever_way_finds_it() -> None:
    machine = Machine(1.0, 2.0)
    machine.ways._other = Failing(machine, "second")
    machine.ways._other.error = EngineBroken("gone")
    machine.serve(1)
    with pytest.raises(EngineBroken):
        machine.serve(1)
    assert machine.serve(1) == ["first"]


def fail(*_: object) -> None:
    raise RuntimeError("no memory")
