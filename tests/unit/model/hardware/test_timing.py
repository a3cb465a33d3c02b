"""The best times of a few runs, on a machine that is disturbed now and then."""

import pytest

from model.hardware import timing
from model.hardware.timing import best_times, is_clearly_faster


class Machine:
    """A clock on the wall and one of the processor, which stand still until a run moves them."""

    def __init__(self):
        self.wall = self.processor = 0.0
        self.order = []

    def way(self, name, wall_s, processor_s):
        def run():
            self.order.append(name)
            disturbed = 1 if self.order.count(name) == 3 else 5  # the first run is, and all but one of the others
            self.wall += wall_s * disturbed
            self.processor += processor_s * disturbed

        return run


def test_the_quickest_run_counts_by_each_clock():
    machine = Machine()
    ways = {"one": machine.way("one", 2.0, 3.0), "other": machine.way("other", 0.5, 1.0)}
    clocks = (lambda: machine.wall, lambda: machine.processor)
    assert best_times(ways, 4, clocks) == {"one": [2.0, 3.0], "other": [0.5, 1.0]}


def test_the_first_run_of_each_is_not_timed():
    machine = Machine()
    ways = {"one": machine.way("one", 2.0, 3.0)}
    assert best_times(ways, 1, (lambda: machine.wall,)) == {"one": [10.0]}
    assert machine.order == ["one", "one"]


def test_they_go_in_turns():
    machine = Machine()
    ways = {name: machine.way(name, 1.0, 1.0) for name in ("one", "other")}
    best_times(ways, 2)
    assert machine.order == ["one", "other"] * 3


@pytest.mark.parametrize(("budget_s", "turns"), [(0.0, 1), (3.9, 1), (4.0, 2), (100.0, 5)])
def test_no_turn_is_begun_that_would_take_too_long(budget_s, turns):
    machine = Machine()

    def second():
        machine.order.append("run")
        machine.wall += 1.0

    best_times({"one": second, "other": second}, 5, (lambda: machine.wall,), budget_s)
    assert len(machine.order) == 2 * (1 + turns)


@pytest.mark.parametrize(
    ("wall_s", "processor_s", "expected"),
    [
        (0.5, 1.0, True),
        (0.89, 1.78, True),
        (0.91, 1.82, False),
        (2.0, 4.0, False),
        (1.0, 1.0, True),  # beside a neighbour, whose burst was as long as the run
        (0.5, 2.0, True),  # where threads had nothing to do
    ],
)
def test_what_is_clearly_faster_saves_a_tenth_of_the_time_by_either_clock(monkeypatch, wall_s, processor_s, expected):
    machine = Machine()
    monkeypatch.setattr(timing, "CLOCKS", (lambda: machine.wall, lambda: machine.processor))
    candidate, baseline = machine.way("candidate", wall_s, processor_s), machine.way("baseline", 1.0, 2.0)
    assert is_clearly_faster(candidate, than=baseline) is expected
