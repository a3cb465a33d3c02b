"""The network on CUDA as fast as it is known to be right: by graphs over two lanes, or operation by operation.

images -> pieces (lanes.py) -> lanes with CUDA graphs (cuda_lane.py) -> logits. There is more than one way to
fill a lane. None is trusted before it is proven (cuda_proof.py), and of those that are, the quickest is measured. A way
that raises or differs is left for good, with a warning, for the next one, and the last one for the eager network.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.backends.agreement import distinct
from app.backends.batch_sizes import LADDER_STEPS, ladder
from app.backends.cuda_lane import CudaLane, CudnnSearch
from app.backends.cuda_proof import ExecutionMode, ProvenLanes
from app.backends.lanes import Lane
from app.backends.torch_backend import TorchBackend, torch_errors_classified
from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.memory import clear_error_frames
from model.checkpoint import Checkpoint
from model.hardware.device import is_out_of_memory
from model.hardware.timing import best_times
from model.runtimes.fused_convolutions import CudnnKernels, FusedNetwork, Kernels, PlainKernels

log = logging.getLogger(__name__)

# The most images in a piece: enough to fill a large GPU, and few enough that a batch of 1024 is four of them, whose
# copies are hidden behind each other's kernels. Pieces are padded to 16 sizes, so a lane has that many graphs at most:
# of the 20 sizes that batches of up to 1024 are padded to, the first lane meets 16 and the second one 2 (128 and 256).
# What they cost in device memory is by calculation, not measured: an activation of the first stage takes 32 MiB (256
# images of 32 x 32, 64 channels, bfloat16; float32 twice that), of which a few live at once, in each lane. Graphs of a
# lane share that memory, and the largest is recorded first, whose blocks serve the smaller ones. One buffer of zeros of
# the same size is shared by all.
PIECE = 256
LANES = 2

# How often modes are timed against each other, in turns, if that does not take too long. By the clock on the wall: the
# processor only waits.
TIMES = 20
BUDGET_S = 2.0
CLOCKS = (time.perf_counter,)


class CudaBackend:
    """The quickest of `modes` that holds what it promises, or `eager`. For one thread at a time.

    `examples`, uint8 (n, 3, S, S), are what they are compared on, `sizes` what pieces are padded to.
    """

    runtime = "torch"
    resizes_freely = False
    overlaps = False

    def __init__(
        self, eager: TorchBackend, modes: Sequence[ExecutionMode], examples: NDArray[np.uint8], sizes: tuple[int, ...]
    ) -> None:
        self.eager = eager
        self.device = eager.device
        self.dtype = eager.dtype
        self._examples = examples
        self._modes = [ProvenLanes(mode, eager, examples, sizes) for mode in modes]
        self._is_chosen = False

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend. The precision was not chosen by speed alone: another checkpoint may need a finer one."""
        return {"runtime": self.runtime}

    @property
    def mode(self) -> str:
        """The name of the mode in use, or "eager"."""
        return self._modes[0].mode.name if self._modes else "eager"

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken.

        A count of images that needs a size for the first time takes much longer, and no device should serve meanwhile
        what must be quick: the engine runs all its sizes before it is ready.
        """
        with torch_errors_classified(torch.device(self.device)):
            self.eager.enter()
            if not self._is_chosen:
                self._is_chosen = True
                self._choose()
            while self._modes:
                lanes = self._modes[0]
                if self._succeeds(lanes, partial(lanes.prove, len(images))):
                    return lanes.run(images)
            return self.eager.logits(images)

    def _choose(self) -> None:
        """Prove the largest pieces of every mode, before any smaller one, and put the quickest mode first.

        The largest first: throughput depends on them, and cuDNN's search may take all of its time for a size. Those of
        every mode are prepared before the eager network computes as many: cuDNN does not search for what it has seen.
        Where memory is too small for all of that, the first mode stays, and a smaller batch may do.
        """
        try:
            for lanes in [*self._modes]:
                self._succeeds(lanes, lanes.prepare_largest)
            for lanes in [*self._modes]:
                self._succeeds(lanes, lanes.prove_largest)
            if len(self._modes) > 1:
                self._put_quickest_first()
        except (EngineOutOfMemory, RuntimeError) as error:
            if not (isinstance(error, EngineOutOfMemory) or is_out_of_memory(error)):
                raise
            clear_error_frames(error)
            log.info("too little memory to measure which way is the quickest: going on with %s", self.mode)
        for lanes in self._modes[1:]:
            self._close(lanes)
        torch.cuda.empty_cache()  # what closed graphs had is of no use to others before

    def _put_quickest_first(self) -> None:
        """Time the modes with a batch that keeps every lane busy."""
        pieces = self._modes[0].opened().largest()
        images = distinct(self._examples, sum(piece.size for piece in pieces))
        runs = {lanes.mode.name: partial(lanes.run, images) for lanes in self._modes}
        best = best_times(runs, TIMES, CLOCKS, BUDGET_S)
        self._modes.sort(key=lambda lanes: best[lanes.mode.name])
        times = ", ".join(f"{1e3 * seconds:.2f} ms by {name}" for name, [seconds] in best.items())
        log.info("a batch of %d images takes %s: going on with %s", len(images), times, self.mode)

    def _succeeds(self, lanes: ProvenLanes, step: Callable[[], object]) -> bool:
        """Do a step with the lanes of a mode; if it fails by that mode's fault, leave the mode and return False."""
        try:
            step()
        except (EngineBroken, EngineOutOfMemory):
            raise  # of the eager network
        except Exception as error:
            # Too little memory says nothing against a way: a smaller batch may do, or the reload is refused.
            if is_out_of_memory(error):
                raise
            if is_out_of_memory(error, has_worked=True) and lanes.computes_anything():
                self._require_memory(error, lanes.tried_size)
            self._leave(lanes, error)
            return False
        return True

    def _require_memory(self, error: Exception, count: int) -> None:
        """Raise EngineOutOfMemory if the eager network cannot compute so many images, as were tried last.

        cuDNN has found nothing for them in a way that computes other sizes. It may have lacked memory, or have nothing
        for that size; what it says is the same. Of the eager network, too, it says something only once that has worked.
        """
        clear_error_frames(error)
        for images in (self._examples[:1], distinct(self._examples, count)):
            self.eager.logits(images)

    def _leave(self, lanes: ProvenLanes, reason: Exception) -> None:
        """Leave a mode for good."""
        self._modes.remove(lanes)
        clear_error_frames(reason)
        self._close(lanes)
        name, lines = lanes.mode.name, str(reason).splitlines() or [""]
        log.warning("%s does not work here, going on with %s: %s: %s", name, self.mode, type(reason).__name__, lines[0])

    def _close(self, lanes: ProvenLanes) -> None:
        with _failure_told("the lanes"):  # the eager network will meet it, too
            lanes.close()

    def release_setup_memory(self) -> None:
        """Give back the memory that cuDNN's search has worked in, which torch keeps otherwise; tell of the search."""
        for lanes in self._modes:
            if lanes.mode.search is not None:
                log.info("%s: %s", lanes.mode.name, lanes.mode.search.summary())
        torch.cuda.empty_cache()

    def close(self) -> None:
        """Give graphs, buffers and weights back to the device."""
        with _failure_told("the network"):
            self.eager.enter()
            for lanes in self._modes:
                self._close(lanes)
            self.eager.close()
        self._modes.clear()


@contextmanager
def _failure_told(of: str) -> Iterator[None]:
    """Warn of a RuntimeError, as a lost context makes of anything: it may hide no other error."""
    try:
        yield
    except RuntimeError as error:
        log.warning("what %s took may be lost: %s", of, str(error).partition("\n")[0])


def open_cuda_backend(
    source: Checkpoint, device: str, precision: str, threads: int, most: int | None = None
) -> CudaBackend:
    """Put a checkpoint's network on a CUDA device, for batches of at most `most` images if that is given.

    Larger ones are computed, too, in more pieces. Raises what torch raises where there is none, EngineOutOfMemory and
    EngineBroken.
    """
    with torch_errors_classified(torch.device(device)):
        eager = TorchBackend(source, device, precision, threads)
    metadata = source.metadata
    most = most or LANES * PIECE
    piece, count = min(PIECE, most), min(LANES, math.ceil(most / PIECE))

    def mode(name: str, kernels: type[Kernels]) -> ExecutionMode:
        search = CudnnSearch()

        def open_lanes() -> Sequence[Lane]:
            network = FusedNetwork(eager.network, kernels())

            def forward(images: Tensor) -> Tensor:
                return eager.logits_by(network, images)

            place, size, classes = torch.device(device), metadata.input_size, len(metadata.classes)
            lanes: list[CudaLane] = []
            try:
                for _ in range(count):
                    lanes.append(CudaLane(forward, place, piece, size, classes, search=search))
            except BaseException:
                for lane in lanes:
                    lane.close()
                raise
            return lanes

        return ExecutionMode(name, open_lanes, search)

    modes = [mode("CUDA graphs with fused convolutions", CudnnKernels), mode("CUDA graphs", PlainKernels)]
    return CudaBackend(eager, modes, source.self_test_images, ladder(piece, LADDER_STEPS["cuda"]))
