"""Services that are loaded in turns, round by round, and compared within each round: the machine's pace changes."""

from __future__ import annotations

from collections.abc import Collection, Sequence

# What each service reached in a round, by its name.
Turn = dict[str, dict[str, float]]


def order_of(names: Collection[str], round_number: int) -> list[str]:
    """Return in which order services take their turns: backwards in every other round, as a machine may slow down."""
    return list(names) if round_number % 2 == 0 else list(names)[::-1]


def rate_ratios(turns: Sequence[Turn], name: str, other: str) -> list[float]:
    """Return a service's requests/s in units of another one's, round by round."""
    return [round(turn[name]["requests_per_s"] / turn[other]["requests_per_s"], 3) for turn in turns]
