"""How long short computations take on a machine where other programs run, too."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Key = TypeVar("Key")
Clock = Callable[[], float]

# Wall time says little beside another program, and processor time not how long threads had nothing to do.
CLOCKS: tuple[Clock, ...] = (time.perf_counter, time.process_time)

# What is clearly faster saves a tenth of the time, in the best of so many runs each: less may be chance.
MAX_RELATIVE_TIME = 0.9
COMPARED_RUNS = 7


def is_clearly_faster(way: Callable[[], object], than: Callable[[], object]) -> bool:
    """Return whether `way` takes less than MAX_RELATIVE_TIME of the time of `than`, by the best of COMPARED_RUNS.

    By whichever of CLOCKS shows more of a difference.
    """
    best = best_times({"than": than, "way": way}, COMPARED_RUNS, CLOCKS)
    return any(quick < MAX_RELATIVE_TIME * slow for quick, slow in zip(best["way"], best["than"], strict=True))


def best_times(
    ways: Mapping[Key, Callable[[], object]],
    times: int,
    clocks: Sequence[Clock] = (time.perf_counter,),
    budget_s: float = math.inf,
) -> dict[Key, list[float]]:
    """Return by way the seconds of its quickest run by each clock, of `times` runs after one that sets it up.

    The ways take turns, so that another program's burst, or a change of the machine's pace, meets all of them. After
    the first turn, no turn begins that would go beyond `budget_s` by the first clock.
    """
    for run in ways.values():
        run()
    best = {key: [float("inf")] * len(clocks) for key in ways}
    spent_s = turn_s = 0.0
    for turn in range(times):
        if turn and spent_s + turn_s > budget_s:
            break
        turn_s = 0.0
        for key, run in ways.items():
            started = [clock() for clock in clocks]
            run()
            taken = [clock() - start for clock, start in zip(clocks, started, strict=True)]
            best[key] = [min(pair) for pair in zip(best[key], taken, strict=True)]
            turn_s += taken[0]
        spent_s += turn_s
    return best
