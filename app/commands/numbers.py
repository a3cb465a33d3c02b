"""How the command line reads numbers, and refuses in one line those that nothing can be done with.

Each parser raises argparse.ArgumentTypeError, whose text argparse shows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

# Beyond these a number can only be a slip, and what it would break later says less.
MOST = 1_000_000_000
HIGHEST_RATE = 100.0
TEMPERATURE_BOUNDS = (0.01, 100.0)  # a network's logits are divided by it, and are float32
SEED_BOUNDS = (-(2**63), 2**63 - 1)  # what torch takes


def _number(text: str, wanted: str, is_right: Callable[[float], bool]) -> float:
    """Parse a number that is right, which "nan" never is. Raises ArgumentTypeError with what was wanted."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not is_right(value):
        raise argparse.ArgumentTypeError(f"expected {wanted}, not {text!r}")
    return value


def share(text: str) -> float:
    """Parse a share, from 0 to 1."""
    return _number(text, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def temperature(text: str) -> float:
    """Parse a temperature to divide logits by."""
    lowest, highest = TEMPERATURE_BOUNDS
    return _number(text, f"a number from {lowest:g} to {highest:g}", lambda value: lowest <= value <= highest)


def rate(text: str) -> float:
    """Parse a learning rate or a weight decay."""
    return _number(text, f"a number from 0 to {HIGHEST_RATE:g}", lambda value: 0 <= value <= HIGHEST_RATE)


def whole(lowest: int, highest: int = MOST) -> Callable[[str], int]:
    """Return the parser of whole numbers from `lowest` to `highest`, which float holds exactly; "1e3" is one."""
    wanted = f"a whole number from {lowest} to {highest}"

    def parse(text: str) -> int:
        return int(_number(text, wanted, lambda value: lowest <= value <= highest and value.is_integer()))

    return parse


def seed(text: str) -> int:
    """Parse a seed: any whole number of 64 bits."""
    lowest, highest = SEED_BOUNDS
    try:
        value = int(text)
    except ValueError:  # also for more digits than Python cares to read
        value = highest + 1
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(f"expected a whole number of 64 bits, not {text!r}")
    return value
