"""A lane on CUDA: a stream, pinned buffers, and the network's kernels recorded once for each size.

images -> pinned memory -> (copied on the stream) device memory -> CUDA graph: normalisation, forward, float32 ->
(copied on the stream) pinned memory -> logits. Launching a recorded graph costs the CPU one call in place of one for
each of the network's kernels, which is what a small batch spends its time on. The copies stay outside of the graph:
they are two more calls, and take the images that there are rather than the padded size.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.hardware.cudnn import cudnn_switched

log = logging.getLogger(__name__)

# Whatever a library sets up when it first sees a shape must have happened before the recording: cuDNN's search, too.
WARM_UP_RUNS = 3

# Of cuDNN's search, for all sizes and lanes of one way: a start should take a minute or two, whatever is found.
SEARCH_S = 60.0

# For batches of up to so many images the thread asks all the time whether the device is done, without the interpreter's
# lock; for larger ones it sleeps, since the cores are for decoding. Waking up takes some 20 to 60 us, which is a part
# that shows of the half a millisecond of a picture that comes alone.
ASKED_SIZE = 8

# Streams that closed lanes have left, by device. torch hands out 32 of them in turn, for ever: after some reloads a new
# lane would record on the stream that the serving engine launches its work on.
_idle_streams: defaultdict[torch.device, list[torch.cuda.Stream]] = defaultdict(list)

# Graphs whose recording has failed, emptied: torch's allocator of pinned memory may ask one for ever what it records.
_unfit: list[torch.cuda.CUDAGraph] = []


def take_stream(device: torch.device) -> torch.cuda.Stream:
    """Return a stream that no other lane has until it is put back."""
    try:
        return _idle_streams[device].pop()
    except IndexError:
        return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class CudnnSearch:
    """Lets cuDNN time what it has for each new shape and take the quickest, rather than what it guesses to be that.

    What was found is kept for the thread and the shape, and used whether the search is on or not. It has to be off in a
    recording: it waits for the device, and would begin anew if what it found did not get its memory there. It is a
    switch of the whole process, but what serves meanwhile only launches graphs.

    cuDNN may compile each of what it tries, a second or more for one: after `budget_s` seconds, SEARCH_S unless given,
    it guesses, from the next shape on.
    """

    def __init__(self, budget_s: float | None = None) -> None:
        self._left_s = SEARCH_S if budget_s is None else budget_s
        self._spent_s = 0.0
        self._to_the_end: list[int] = []
        self._cut_short: list[int] = []

    @contextmanager
    def on(self, size: int) -> Iterator[None]:
        """Search for batches of `size` images while there are seconds left."""
        began, before_s = time.perf_counter(), self._left_s
        try:
            with cudnn_switched("benchmark", before_s > 0), _search_ended_after(before_s):
                yield
        finally:
            spent_s = time.perf_counter() - began
            self._left_s -= spent_s
            self._spent_s += spent_s if before_s > 0 else 0.0
        if size not in self._to_the_end + self._cut_short:  # else another lane has it, and this one took what was found
            (self._to_the_end if self._left_s > 0 else self._cut_short).append(size)

    def summary(self) -> str:
        """Say how long it took, and for batches of how many images it came to its end."""
        ended = ", ".join(map(str, self._to_the_end)) or "none"
        guessed = f", guesses for {', '.join(map(str, self._cut_short))}" if self._cut_short else ""
        return f"{self._spent_s:.1f} s of search, to its end for batches of {ended}{guessed}"

    @staticmethod
    def off() -> AbstractContextManager[None]:
        """Search for nothing."""
        return cudnn_switched("benchmark", False)


@contextmanager
def _search_ended_after(seconds: float) -> Iterator[None]:
    """Switch cuDNN's search off once so many seconds are over: a single size has a shape for each convolution."""
    timer = threading.Timer(seconds, setattr, (torch.backends.cudnn, "benchmark", False))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()  # else it might undo what is set next


class CudaLane:
    """Implements Lane (lanes.py) for pieces of up to `largest` images of `input_size`.

    `forward` maps uint8 (n, 3, S, S) to float32 (n, classes), both on `device`, always by the same kernels for the same
    n, and without waiting for the device. All lanes of one way have the same `search`.
    """

    def __init__(
        self,
        forward: Callable[[Tensor], Tensor],
        device: torch.device,
        largest: int,
        input_size: int,
        classes: int,
        *,
        search: CudnnSearch,
    ) -> None:
        self._forward = forward
        self._search = search
        self._device = device
        shape = (largest, 3, input_size, input_size)
        self._images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self._logits = torch.zeros((largest, classes), device=device)
        self._sent = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        self._received = torch.empty((largest, classes), pin_memory=True)
        # All graphs of a lane work in the same memory: only one runs at a time, and none reads what another has left,
        # since images and logits are outside of it. Two lanes share none: they run at the same time.
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self._count = 0
        self._failed = False
        self._sleeping = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._asking = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._done = self._sleeping
        self._stream = take_stream(device)

    @torch.inference_mode()
    def prepare(self, size: int) -> None:
        """Record the graph for `size` images, of the quickest kernels that cuDNN finds.

        Raises RuntimeError if it cannot be recorded, or memory is too small.
        """
        if size in self._graphs:
            return
        self._stream.wait_stream(torch.cuda.current_stream(self._device))  # weights and buffers come from there
        images, logits = self._images[:size], self._logits[:size]
        # A stream that was set again here: torch.cuda.graph leaves its own set when a recording fails.
        with torch.cuda.stream(self._stream):
            images.zero_()  # so that logits of these images cannot pass for those of others
            with self._search.on(size):
                for _ in range(WARM_UP_RUNS):
                    logits.copy_(self._forward(images))
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            try:
                # Of this thread only: while an engine is loaded another one serves in its own, and may allocate.
                with (
                    self._search.off(),
                    torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
                ):
                    logits.copy_(self._forward(images))
            except torch.OutOfMemoryError:
                # The recording itself has ended well, else its end had raised another error in place of this one. The
                # graph would keep what all of the lane's graphs have in their pool.
                graph.reset()
                if not self._graphs:  # torch may refuse a pool that the last of its graphs has left
                    self._pool = torch.cuda.graph_pool_handle()
                raise
            except RuntimeError:
                self._abandon(graph)
                raise
        self._graphs[size] = graph

    def _abandon(self, graph: torch.cuda.CUDAGraph) -> None:
        """Free what a recording on the current stream has taken whose end has failed, too.

        From torch 2.14 on reset() does. In torch 2.11 the allocator would believe in the recording for ever: it gives
        nothing back to the device meanwhile, and takes the pool for no other one. What reset() leaves out is done here;
        a torch that ends the recording by itself, but keeps the pool, still loses what is in it.
        """
        self._failed = True
        _unfit.append(graph)
        with suppress(RuntimeError):
            graph.reset()
        with suppress(RuntimeError, AttributeError, TypeError):  # the two are private: they may go, or change
            device = torch.cuda.current_device()
            torch._C._cuda_endAllocateToPool(device, self._pool)  # raises where that is done: so may be the next step
            torch._C._cuda_releasePool(device, self._pool)
        self._pool = torch.cuda.graph_pool_handle()
        with suppress(RuntimeError):  # another lane may take the stream, unless it records still
            self._failed = torch.cuda.is_current_stream_capturing()

    def start(self, images: NDArray[np.uint8], size: int) -> None:
        """Copy uint8 (n, 3, S, S) into pinned memory and put the rest on the stream; see Lane."""
        self._count = count = len(images)
        self._done = self._asking if size <= ASKED_SIZE else self._sleeping
        self._sent.numpy()[:count] = images
        with torch.cuda.stream(self._stream):
            self._images[:count].copy_(self._sent[:count], non_blocking=True)
            self._graphs[size].replay()
            self._received[:count].copy_(self._logits[:count], non_blocking=True)
            self._done.record(self._stream)

    def finish(self) -> NDArray[np.float32]:
        """Wait for the stream; see Lane."""
        self._done.synchronize()
        logits: NDArray[np.float32] = self._received.numpy()[: self._count]
        return logits

    def close(self) -> None:
        """Let go of graphs and buffers; torch.cuda.empty_cache() then gives their memory back to the device."""
        self._stream.synchronize()
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
        del self._images, self._logits, self._sent, self._received, self._forward
        if not self._failed:
            _idle_streams[self._device].append(self._stream)
