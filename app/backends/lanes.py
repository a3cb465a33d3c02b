"""A batch in pieces over several lanes, so that one piece travels while another one is computed. Knows no torch.

uint8 (N, 3, S, S) -> pieces of at most so many images, each padded to one of a few sizes -> in turn to the lanes, which
work beside each other -> float32 (N, classes), in the order of the images. A lane has one piece at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Lane(Protocol):
    """A place for one piece at a time: its own buffers, and whatever computes from one of them into the other."""

    def prepare(self, size: int) -> None:
        """Get ready for pieces padded to `size`, as slow as it must be; at once if it is."""

    def start(self, images: NDArray[np.uint8], size: int) -> None:
        """Begin with uint8 (n, 3, S, S), 1 <= n <= size, and return before it is done.

        The images have been copied by then. `size` is one that was prepared for; the rest of it is padding.
        """

    def finish(self) -> NDArray[np.float32]:
        """Wait for what was started last and return its logits, float32 (n, classes), good until the next start."""

    def close(self) -> None:
        """Give back the memory."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The images from `begin` to `end` of a batch, padded to `size`, for the lane of that number."""

    begin: int
    end: int
    size: int
    lane: int


class Lanes:
    """Lanes that take the pieces of a batch in turn. `sizes`, increasing, are what a piece may be padded to."""

    def __init__(self, lanes: Sequence[Lane], sizes: tuple[int, ...]) -> None:
        self.lanes = lanes
        self.sizes = sizes

    def largest(self) -> list[Piece]:
        """Return a piece of the largest size for every lane."""
        return self.pieces(len(self.lanes) * self.sizes[-1])

    def pieces(self, count: int) -> list[Piece]:
        """Cut a batch of `count` images: pieces of the largest size, and what is left in the smallest that holds it."""
        largest = self.sizes[-1]
        cut = []
        for number, begin in enumerate(range(0, count, largest)):
            end = min(begin + largest, count)
            size = next(size for size in self.sizes if size >= end - begin)
            cut.append(Piece(begin, end, size, number % len(self.lanes)))
        return cut

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S), N at least 1, to float32 logits (N, classes). Raises what the lanes raise.

        Every lane has work before the first one is waited for. A lane that failed, or was left behind when another one
        did, may be started again: nothing of the old piece is kept here.
        """
        under_way: deque[Piece] = deque()
        done: list[NDArray[np.float32]] = []
        for piece in self.pieces(len(images)):
            if len(under_way) == len(self.lanes):  # the next lane is the one that was started first
                done.append(self._finish(under_way.popleft()))
            self.lanes[piece.lane].start(images[piece.begin : piece.end], piece.size)
            under_way.append(piece)
        done.extend(self._finish(piece) for piece in under_way)
        return np.concatenate(done)

    def _finish(self, piece: Piece) -> NDArray[np.float32]:
        return self.lanes[piece.lane].finish().copy()

    def close(self) -> None:
        """Give back the memory of all lanes."""
        for lane in self.lanes:
            lane.close()
