"""How many images are computed on at once, by their size. Nothing here needs torch."""

from __future__ import annotations

# Up to so many pixels a side a batch is as large as is wished; of larger images fewer, so that pixels are no more.
FULL_BATCH_SIDE = 64


def batch_size_for(side: int, most: int, *, least: int = 1) -> int:
    """Return how many images of `side` x `side` pixels have the pixels of `most` of 64 x 64; at least `least`."""
    return max(least, min(most, most * FULL_BATCH_SIDE**2 // side**2))
