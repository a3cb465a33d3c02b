"""The network on CUDA as fast as it is known to be right: by graphs over two lanes, or operation by operation.

images -> pieces (lanes.py) -> lanes with CUDA graphs (cuda_lane.py) -> logits. There is more than one way to
fill a lane, the fastest first. None is trusted: before a size is used in a lane it must reproduce there, on pictures,
the logits of the eager network (torch_backend.py). A way that raises or differs is left for good, with a warning,
for the next one, and the last one for the eager network.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.backends.backend import EngineBroken, EngineOutOfMemory
from app.backends.batch_sizes import LADDER_STEPS, ladder
from app.backends.cuda_lane import CudaLane, CudnnSearch
from app.backends.lanes import Lane, Lanes, Piece
from app.backends.torch_backend import TorchBackend, torch_errors_classified
from app.memory import clear_error_frames
from model.checkpoint import Checkpoint
from model.device import is_out_of_memory
from model.fused_convolutions import CudnnKernels, FusedNetwork, Kernels, PlainKernels

log = logging.getLogger(__name__)

# The most images in a piece: enough to fill a large GPU, and few enough that a batch of 1024 is four of them, whose
# copies are hidden behind each other's kernels. Pieces are padded to 16 sizes, so a lane has that many graphs at most:
# of the 20 sizes that batches of up to 1024 are padded to, the first lane meets 16 and the second one 2 (128 and 256).
# What they cost in device memory is by calculation, not measured: an activation of the first stage takes 32 MiB (256
# images of 32 x 32, 64 channels, bfloat16; float32 twice that), of which a few live at once, in each lane. Graphs of a
# lane share that memory, but recorded in increasing sizes they may take twice what the largest needs: blocks of a
# smaller one are of no use to it. One buffer of zeros of the same size is shared by all.
PIECE = 256
LANES = 2

# How far logits may be from the eager network's, as a share of the largest of those. With an earlier checkpoint, and a
# GPU's rounding simulated on a CPU, fusing moved them by 0.6 % in bfloat16 (256 pictures; 0.7 % on noise). Leaving out
# the head's bias moves them by 4 %, that of any convolution by 29 % and more; two pictures that change places, by 14 %
# and more.
TOLERANCES = {"bfloat16": 0.03, "float16": 0.01, "float32": 0.01}


class Differs(Exception):
    """A faster way computes something else; the message says how far off."""


@dataclass(frozen=True, slots=True)
class ExecutionMode:
    """One way to compute on CUDA, and what opens its lanes."""

    name: str
    open: Callable[[], Sequence[Lane]]


class CudaBackend:
    """The fastest of `modes` that holds what it promises, or `eager`. For one thread at a time.

    `examples`, uint8 (n, 3, S, S), are what they are compared on, `sizes` what pieces are padded to.
    """

    runtime = "torch"
    resizes_freely = False

    def __init__(
        self, eager: TorchBackend, modes: Sequence[ExecutionMode], examples: NDArray[np.uint8], sizes: tuple[int, ...]
    ) -> None:
        self.eager = eager
        self.device = eager.device
        self.dtype = eager.dtype
        self._modes = list(modes)
        self._examples = examples
        self._sizes = sizes
        self._lanes: Lanes | None = None
        self._proven: set[tuple[int, int]] = set()
        self._last_tried = 0

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend. The precision was not chosen by speed alone: another checkpoint may need a finer one."""
        return {"runtime": self.runtime, "split_batches": False}

    @property
    def mode(self) -> str:
        """The name of the mode in use, or "eager"."""
        return self._modes[0].name if self._modes else "eager"

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken.

        A count of images that needs a size for the first time takes much longer, and no device should serve meanwhile
        what must be quick: the engine runs all its sizes before it is ready.
        """
        with torch_errors_classified(torch.device(self.device)):
            self.eager.enter()
            lanes = self._prepared(len(images))
            return lanes.run(images) if lanes is not None else self.eager.logits(images)

    def _prepared(self, count: int) -> Lanes | None:
        """Return lanes that are proven for `count` images, or None if no way is left but the eager one."""
        while self._modes:
            try:
                if self._lanes is None:
                    self._lanes = Lanes(self._modes[0].open(), self._sizes)
                for piece in self._lanes.pieces(count):
                    if (piece.lane, piece.size) not in self._proven:
                        self._prove(self._lanes.lanes[piece.lane], piece)
                return self._lanes
            except (EngineBroken, EngineOutOfMemory):
                raise  # of the eager network
            except Exception as error:
                # Too little memory says nothing against a way: a smaller batch may do, or the reload is refused.
                if is_out_of_memory(error):
                    raise
                if is_out_of_memory(error, has_worked=bool(self._proven)):
                    self._require_memory(error)
                self._give_up(error)
        return None

    def _require_memory(self, error: Exception) -> None:
        """Raise EngineOutOfMemory if the eager network cannot compute as many images as were tried last.

        cuDNN has found nothing for them in a way that has computed other sizes. It may have lacked memory, or have
        nothing for that size; what it says is the same.
        """
        clear_error_frames(error)
        self.eager.logits(distinct(self._examples, self._last_tried))

    def _prove(self, lane: Lane, piece: Piece) -> None:
        """Compare a lane with the eager network at one size. Raises Differs, or whatever the lane raises."""
        self._last_tried = piece.size
        images = distinct(self._examples, piece.size)
        lane.prepare(piece.size)  # before eager's convolutions of that size: cuDNN does not search for what it has seen
        expected = self.eager.logits(images)
        lane.start(images, piece.size)
        worst = float(np.abs(lane.finish() - expected).max() / np.abs(expected).max())
        if not worst <= TOLERANCES[self.dtype]:  # also catches NaN
            raise Differs(f"logits of {piece.size} images are {worst:.1%} off")
        if not self._proven:
            log.info("computing by %s: within %.2f %% of the eager network's logits", self.mode, 100 * worst)
        self._proven.add((piece.lane, piece.size))

    def _give_up(self, reason: Exception) -> None:
        """Leave the way in use for the next one."""
        name = self._modes.pop(0).name
        clear_error_frames(reason)
        self._release_lanes()
        lines = str(reason).splitlines() or [""]
        log.warning("%s does not work here, going on with %s: %s: %s", name, self.mode, type(reason).__name__, lines[0])

    def _release_lanes(self) -> None:
        lanes, self._lanes = self._lanes, None
        self._proven.clear()
        if lanes is not None:
            with _failure_told("the lanes"):  # the eager network will meet it, too
                lanes.close()

    def release_setup_memory(self) -> None:
        """Give back the memory that cuDNN's search has worked in, which torch keeps otherwise."""
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Give graphs, buffers and weights back to the device."""
        self._modes.clear()
        with _failure_told("the network"):
            self.eager.enter()
            self._release_lanes()
            self.eager.close()


@contextmanager
def _failure_told(of: str) -> Iterator[None]:
    """Warn of a RuntimeError, as a lost context makes of anything: it may hide no other error."""
    try:
        yield
    except RuntimeError as error:
        log.warning("what %s took may be lost: %s", of, str(error).partition("\n")[0])


def distinct(examples: NDArray[np.uint8], count: int) -> NDArray[np.uint8]:
    """Return so many pictures that no two of them are alike: the examples, and again, shifted to the side and down."""
    times, width = -(-count // len(examples)), examples.shape[-1]
    shifted = [np.roll(examples, divmod(shift, width), axis=(-2, -1)) for shift in range(times)]
    return np.concatenate(shifted)[:count]


def open_cuda_backend(source: Checkpoint, device: str, precision: str, threads: int) -> CudaBackend:
    """Put a checkpoint's network on a CUDA device.

    Raises what torch raises where there is none, EngineOutOfMemory and EngineBroken.
    """
    with torch_errors_classified(torch.device(device)):
        eager = TorchBackend(source, device, precision, threads)
    metadata = source.metadata

    def lanes_with(kernels: type[Kernels]) -> Callable[[], Sequence[Lane]]:
        def open_lanes() -> Sequence[Lane]:
            network = FusedNetwork(eager.network, kernels())

            def forward(images: Tensor) -> Tensor:
                return eager.logits_by(network, images)

            search = CudnnSearch()
            place, size, classes = torch.device(device), metadata.input_size, len(metadata.classes)
            lanes: list[CudaLane] = []
            try:
                for _ in range(LANES):
                    lanes.append(CudaLane(forward, place, PIECE, size, classes, search=search))
            except BaseException:
                for lane in lanes:
                    lane.close()
                raise
            return lanes

        return open_lanes

    modes = [
        ExecutionMode("CUDA graphs with fused convolutions", lanes_with(CudnnKernels)),
        ExecutionMode("CUDA graphs", lanes_with(PlainKernels)),
    ]
    return CudaBackend(eager, modes, source.self_test_images.numpy(), ladder(PIECE, LADDER_STEPS["cuda"]))
