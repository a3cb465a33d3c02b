"""Types of the command line's numbers for argparse: parsers, which refuse unusable ones in one line.

Each raises argparse.ArgumentTypeError, the text of which argparse shows.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

# A number beyond these can only be a slip, and the error that it would lead to later is less clear.
MOST = 1_000_000_000
HIGHEST_RATE = 100.0
TEMPERATURE_BOUNDS = (0.01, 100.0)  # a network's logits are divided by it, and are float32
SEED_BOUNDS = (-(2**63), 2**63 - 1)  # what torch takes


def _number(text: str, wanted: str, is_right: Callable[[float], bool]) -> float:
    """Parse a number that `is_right` accepts; "nan" never is. Raises ArgumentTypeError, which names `wanted`."""
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


def share_below_one(text: str) -> float:
    """Parse a share that must not be all."""
    return _number(text, "a share from 0 to below 1", lambda value: 0 <= value < 1)


def weight_decay(text: str) -> float:
    """Parse a weight decay."""
    return _number(text, f"a number from 0 to {HIGHEST_RATE:g}", lambda value: 0 <= value <= HIGHEST_RATE)


def learning_rate(text: str) -> float:
    """Parse a learning rate: with 0, nothing would be learnt."""
    return _number(text, f"a number above 0, up to {HIGHEST_RATE:g}", lambda value: 0 < value <= HIGHEST_RATE)


def whole(lowest: int, highest: int = MOST) -> Callable[[str], int]:
    """Return a parser of whole numbers from `lowest` to `highest`, such as "1e3". A float must hold both exactly."""
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
