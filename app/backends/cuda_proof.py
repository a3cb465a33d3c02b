"""One way to compute on CUDA, and the proof that it computes what the eager network does.

No lane is trusted: before a size is used in one, it must reproduce there, on pictures, the logits of the eager network
(torch_backend.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from app.backends.agreement import distinct
from app.backends.cuda_lane import CudnnSearch
from app.backends.lanes import Lane, Lanes, Piece
from app.backends.measured import relative_error
from model.hardware.device import is_out_of_memory

log = logging.getLogger(__name__)

# How far logits may be from the eager network's, as a share of the largest of those. With an earlier checkpoint, and a
# GPU's rounding simulated on a CPU, fusing moved them by 0.6 % in bfloat16 (256 pictures; 0.7 % on noise). Leaving out
# the head's bias moves them by 4 %, that of any convolution by 29 % and more; two pictures that change places, by 14 %
# and more.
TOLERANCES = {"bfloat16": 0.03, "float16": 0.01, "float32": 0.01}


class Differs(Exception):
    """A faster way computes something else; the message says how far off."""


class Eager(Protocol):
    """What a faster way is compared with."""

    dtype: str

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes)."""


@dataclass(frozen=True, slots=True)
class ExecutionMode:
    """One way to compute on CUDA: what opens its lanes, and the search that they share, if there is one."""

    name: str
    open: Callable[[], Sequence[Lane]]
    search: CudnnSearch | None = None


class ProvenLanes:
    """The lanes of a mode, opened when they are needed first, and what they have been proven for.

    `examples`, uint8 (n, 3, S, S), are what they are compared on, `sizes` what pieces are padded to.
    """

    def __init__(self, mode: ExecutionMode, eager: Eager, examples: NDArray[np.uint8], sizes: tuple[int, ...]) -> None:
        self.mode = mode
        self.tried_size = 0
        """The size that was prepared or proven last."""
        self._eager = eager
        self._examples = examples
        self._sizes = sizes
        self._lanes: Lanes | None = None
        self._proven: set[tuple[int, int]] = set()  # lanes, by their numbers, and sizes

    def opened(self) -> Lanes:
        """Return the lanes. Raises what opening them raises."""
        if self._lanes is None:
            self._lanes = Lanes(self.mode.open(), self._sizes)
        return self._lanes

    def prepare_largest(self) -> None:
        """Prepare every lane for its largest piece. Raises what the lanes raise."""
        for piece in self.opened().largest():
            self._prepare(piece)

    def prove_largest(self) -> None:
        """Prove every lane with its largest piece. Raises Differs, and what lanes and eager network raise."""
        self._prove(self.opened().largest())

    def prove(self, count: int) -> None:
        """Prove whatever `count` images need that has not been proven. Raises the same."""
        self._prove(self.opened().pieces(count))

    def computes_anything(self) -> bool:
        """Whether it has been proven for any size or, if not, a batch of the smallest can be prepared now.

        Raises what says that memory is too small.
        """
        try:
            if not self._proven:
                self.opened().lanes[0].prepare(self._sizes[0])
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            return False
        return True

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes), where so many are proven. Raises what lanes raise."""
        return self.opened().run(images)

    def close(self) -> None:
        """Give the lanes' memory back; they may be opened again, and have to be proven anew. Raises what they raise."""
        lanes, self._lanes = self._lanes, None
        self._proven.clear()
        if lanes is not None:
            lanes.close()

    def _prepare(self, piece: Piece) -> None:
        self.tried_size = piece.size
        self.opened().lanes[piece.lane].prepare(piece.size)

    def _prove(self, pieces: list[Piece]) -> None:
        for piece in pieces:
            if (piece.lane, piece.size) not in self._proven:
                self._compare(piece)
                self._proven.add((piece.lane, piece.size))

    def _compare(self, piece: Piece) -> None:
        """Compare a lane with the eager network at one size."""
        images = distinct(self._examples, piece.size)
        self._prepare(piece)  # before eager's convolutions of that size: cuDNN does not search for what it has seen
        expected = self._eager.logits(images)
        lane = self.opened().lanes[piece.lane]
        lane.start(images, piece.size)
        worst = relative_error(lane.finish(), expected)
        if not worst <= TOLERANCES[self._eager.dtype]:  # also catches NaN
            raise Differs(f"logits of {piece.size} images are {worst:.1%} off")
        if not self._proven:
            log.info("%s works: within %.2f %% of the eager network's logits", self.mode.name, 100 * worst)
