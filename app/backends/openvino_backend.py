"""The network in OpenVINO: the faster runtime on CPUs (benchmarks/engine_cpu.json), and the one for int8.

Nothing here needs torch, neither to write the network down nor to compute it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import ceil
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import CompiledModel, InferRequest, Model, Tensor

from app.backends.agreement import BOUND, compared_pictures, probability_difference
from app.backends.measured import Candidate
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.runtimes.file_backed import FileBacked
from model.runtimes.folded_layers import fold
from model.runtimes.openvino_core import core, has_fast_bfloat16
from model.runtimes.openvino_graph import openvino_model, quantised_model

log = logging.getLogger(__name__)

# The smallest batch that is computed in pieces, two of them side by side, with a thread or more each.
PIECES_FROM = 6

# How many images a piece has for each of its threads, at most: more are no faster, and leave less to be shared out.
IMAGES_A_THREAD = 8

# How many pieces are computed at a time.
STREAMS = 2

# What is done with pieces that answer otherwise than the whole batch, by whether `split_batches` asks for them.
DISAGREEING = {
    False: "batches are not computed in pieces",
    True: f"batches are computed in pieces, as split_batches says, though no more than {BOUND} is promised",
}

# With fewer images for each thread there are two pieces only: what a layer has to do is little then.
LEAST_A_THREAD = 3


def fast_float() -> str:
    """Return the faster float on this CPU."""
    return "bfloat16" if has_fast_bfloat16() else "float32"


def open_openvino(source: Checkpoint, settings: Settings, precision: str, *, pieces: bool = True) -> OpenVinoBackend:
    """Put a checkpoint's network on this CPU, in float32, bfloat16 or int8. Raises what OpenVINO raises.

    Of the settings those count that say how it is computed: `threads`, `pin_threads`, `split_batches` and
    `batch_sizes`. Without `pieces` all batches are computed whole, whatever these say.
    """
    threads = settings.engine_threads
    metadata, spec = source.metadata, source.metadata.network_spec()
    tensors = {name: stored.array() for name, stored in source.stored.items()}
    constants = FileBacked(FileBacked.size_of([tensor.nbytes for tensor in tensors.values()]))
    described = (spec, fold(spec, tensors, constants.keep), metadata.mean, metadata.std)
    if precision == "int8":
        if metadata.has_synthetic_self_test:
            log.warning(
                "the ranges of int8 come from the self-test's images, which are synthetic in this checkpoint: before "
                "relying on it, compare what resnet evaluate --url measures in int8 and without"
            )
        model = quantised_model(*described, images=source.self_test_images, threads=threads)
    else:
        model = openvino_model(*described)
    floats = fast_float() if precision == "int8" else precision
    split = settings.split_batches
    if not pieces or threads == 1 or (settings.batch_sizes and settings.batch_sizes[-1] < PIECES_FROM):
        split = False
    return OpenVinoBackend(
        model,
        precision,
        floats,
        threads,
        constants,
        pin=settings.pin_threads,
        split=split,
        source=source,
    )


def pieces_of(images: int, threads: int) -> int:
    """Return in how many pieces so many images are computed, an even number: both halves of the threads have as many.

    Four at least, so that a half of the threads that is held up, by the event loop or by another program, leaves a
    piece to the other half; two of fewer than LEAST_A_THREAD images a thread.
    """
    if images < LEAST_A_THREAD * threads:
        return 2
    return max(4, 2 * ceil(images / (IMAGES_A_THREAD * threads)))


class WholeBatch:
    """All of a batch on all threads, layer by layer."""

    def __init__(self, request: InferRequest) -> None:
        self._request = request
        self._lock = Lock()  # two threads are here where most of a full batch was given up

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Candidate."""
        # By way of a tensor: the binding's own dealings with arrays take 5 % of a batch of one. A tensor wants what may
        # be written to, which images that lie in a request's body are not, and does not keep it alive.
        with self._lock:
            self._request.set_input_tensor(Tensor(images, shared_memory=True))
            self._request.infer(share_outputs=True)
            logits: NDArray[np.float32] = self._request.get_output_tensor().data.copy()
        return logits


class Pieces:
    """A batch in pieces, two at a time, each on half of the `threads`, which do not wait for the other half's.

    All are handed over at once; OpenVINO gives the next one to whichever half is free, those of a second batch once
    there are none of the first.
    """

    def __init__(self, compiled: CompiledModel, threads: int) -> None:
        self._compiled = compiled
        self._threads = threads
        self._idle_requests: list[InferRequest] = []

    def logits(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """See Candidate; two images or more; in two threads, if need be.

        `nearly_done` is called when those that are left are all being computed, and none waits, unless one has failed.
        Raises what the first piece raises that does.
        """
        pieces = np.array_split(images, pieces_of(len(images), self._threads))
        requests = [self._idle_request() for _ in pieces]
        try:
            return self._compute(requests, pieces, nearly_done)
        finally:
            self._idle_requests += requests

    def _idle_request(self) -> InferRequest:
        """Take one off those that compute nothing, or make one."""
        try:
            return self._idle_requests.pop()
        except IndexError:
            return self._compiled.create_infer_request()

    def make_requests(self) -> None:
        """Make what a second batch beside the largest so far needs: later it would wait for what is computed."""
        self._idle_requests += [self._compiled.create_infer_request() for _ in self._idle_requests]

    def _compute(
        self,
        requests: list[InferRequest],
        pieces: list[NDArray[np.uint8]],
        nearly_done: Callable[[], None] | None,
    ) -> NDArray[np.float32]:
        under_way: list[InferRequest] = []
        failures: list[Exception] = []
        for request, piece in zip(requests, pieces, strict=True):
            try:
                request.set_input_tensor(Tensor(piece, shared_memory=True))
                request.start_async(share_inputs=True)
                under_way.append(request)
            except (RuntimeError, MemoryError) as error:
                failures.append(error)
        for left, request in zip(range(len(under_way), 0, -1), under_way, strict=True):
            # All, whatever becomes of the first: they read memory that is the caller's.
            if nearly_done is not None and left == STREAMS < len(under_way) and not failures:
                nearly_done()
            try:
                request.wait()
            except (RuntimeError, MemoryError) as error:
                failures.append(error)
        if failures:
            del failures[1:]
            raise failures.pop()  # held by this frame, which it holds, it would keep all images until a full collection
        return np.concatenate([request.get_output_tensor().data for request in under_way])


class OpenVinoBackend:
    """Compiled for this CPU; takes batches of any size, but sets up each new one, which takes time and memory.

    `precision` is float32, bfloat16 or int8, `floats` that of what is left in floats. The model's weights lie in
    `constants`. Large batches are computed in pieces as `split` says, with a warning if they answer otherwise than the
    whole does, on pictures of `source`; None does so only if they answer alike.
    """

    runtime = "openvino"
    device = "cpu"
    resizes_freely = False

    def __init__(
        self,
        model: Model,
        precision: str,
        floats: str,
        threads: int,
        constants: FileBacked,
        *,
        pin: bool,
        split: bool | None,
        source: Checkpoint,
    ) -> None:
        self.dtype = precision
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[floats],
            # Threads that may not move stand still beside another program; those that may now and then share a core.
            "ENABLE_CPU_PINNING": pin,
        }
        if "TBB_PARTITIONER" in core().get_property("CPU", "SUPPORTED_PROPERTIES"):
            # A layer's work in a part for each thread. More parts, for whichever thread is free, cost some 50 us a
            # layer, as much as its work for a few images takes with AMX.
            options["TBB_PARTITIONER"] = "STATIC"
        whole = core().compile_model(model, "CPU", options | {"PERFORMANCE_HINT": "LATENCY"})  # a batch on all threads
        self._compiled = [whole]
        self._whole: Candidate = WholeBatch(whole.create_infer_request())
        self._pieces: Pieces | None = None
        if split is not False:
            divided = core().compile_model(
                model, "CPU", options | {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": STREAMS}
            )
            pieces = Pieces(divided, threads)
            worst = _difference(pieces, self._whole, source)
            agree = worst <= BOUND  # not where it is NaN
            if not agree:
                log.warning("%s: probabilities differ by %.4f from the whole's", DISAGREEING[split is True], worst)
            if agree or split:
                self._compiled.append(divided)
                self._pieces = pieces
        self.overlaps = self._pieces is not None
        self._constants = constants  # OpenVINO may look at them as long as the model lives

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend."""
        return {"precision": self.dtype, "runtime": self.runtime}

    def logits(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory."""
        images = np.require(images, requirements=["C", "W"])
        try:
            if self._pieces is None or len(images) < PIECES_FROM:
                return self._whole.logits(images)
            return self._pieces.logits(images, nearly_done)
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "allocate" in str(error):
                raise EngineOutOfMemory from error
            raise

    def release_setup_memory(self) -> None:
        """Give back the constants, which OpenVINO has put into an order of its own, and what setting up needed."""
        if self._pieces is not None:
            self._pieces.make_requests()
        for compiled in self._compiled:
            compiled.release_memory()
        self._constants.drop_pages()

    def close(self) -> None:
        """Give the compiled network's memory back."""
        del self._whole, self._pieces, self._compiled, self._constants


def _difference(pieces: Candidate, whole: Candidate, source: Checkpoint) -> float:
    """Return by how much a probability differs at most, NaN where one is that. So far it was nothing."""
    images = compared_pictures(source.self_test_images)
    return probability_difference(source.metadata.calibration, pieces.logits(images), whole.logits(images))
