"""The network in OpenVINO: the faster runtime on CPUs (benchmarks/engine_cpu.json), and the one for int8.

Nothing here needs torch, neither to write the network down nor to compute it.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import CompiledModel, InferRequest, Model, Tensor

from app.backends.faster_of_two import FasterOfTwo
from app.backends.measured import Candidate, difference
from app.engine_errors import EngineOutOfMemory
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.runtimes.file_backed import FileBacked
from model.runtimes.folded_layers import fold
from model.runtimes.openvino_core import core, has_fast_bfloat16
from model.runtimes.openvino_graph import openvino_model, quantised_model

log = logging.getLogger(__name__)

# The smallest batch that may be computed in two halves, side by side, with a thread or more each. Smaller ones are
# computed whole, a layer's work in as many pieces as there are threads.
HALVES_FROM = 6

# A batch at a time, on all threads; and two at a time, on half of the threads each.
LATENCY = {"PERFORMANCE_HINT": "LATENCY"}
TWO_STREAMS = {"PERFORMANCE_HINT": "THROUGHPUT", "NUM_STREAMS": 2}

# By how much its logits may differ from the whole's, of the largest. They were the same so far, to the last bit.
TOLERANCE = 0.02


def fast_float() -> str:
    """Return the faster float on this CPU."""
    return "bfloat16" if has_fast_bfloat16() else "float32"


def open_openvino(
    source: Checkpoint, settings: Settings, precision: str, *, large_batches: bool = True
) -> OpenVinoBackend:
    """Put a checkpoint's network on this CPU, in float32, bfloat16 or int8. Raises what OpenVINO raises.

    Of the settings those count that say how it is computed: `threads`, `pin_threads` and `split_batches`. Without
    `large_batches` there is nothing that only those need.
    """
    threads = settings.engine_threads
    metadata, spec = source.metadata, source.metadata.network_spec()
    tensors = {name: stored.array() for name, stored in source.stored.items()}
    constants = FileBacked(FileBacked.size_of([one.nbytes for one in tensors.values()]))
    described = (spec, fold(spec, tensors, constants.keep), metadata.mean, metadata.std)
    if precision == "int8":
        model = quantised_model(*described, images=source.self_test_images, threads=threads)
    else:
        model = openvino_model(*described)
    floats = fast_float() if precision == "int8" else precision
    examples = source.self_test_images
    split = settings.split_batches
    if threads == 1 or (split is None and precision == "int8"):  # whose halves gain nothing in the service either
        split = False
    return OpenVinoBackend(
        model,
        precision,
        floats,
        threads,
        constants,
        pin=settings.pin_threads,
        split=split,
        large_batches=large_batches and threads > 1,
        examples=examples,
    )


class WholeBatch:
    """All of a batch on all threads, layer by layer."""

    def __init__(self, request: InferRequest) -> None:
        self._request = request

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Candidate."""
        # By way of a tensor: the binding's own dealings with arrays take 5 % of a batch of one. A tensor wants what may
        # be written to, which images that lie in a request's body are not, and does not keep it alive.
        self._request.set_input_tensor(Tensor(images, shared_memory=True))
        self._request.infer(share_outputs=True)
        logits: NDArray[np.float32] = self._request.get_output_tensor().data.copy()
        return logits


class Halves:
    """Two halves of a batch at the same time, each on half of the threads, which do not wait for the other half's."""

    def __init__(self, first: InferRequest, second: InferRequest) -> None:
        self._requests = first, second

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """See Candidate; two images or more. Raises what the first half raises that does."""
        middle = (len(images) + 1) // 2
        under_way: list[InferRequest] = []
        failures: list[Exception] = []
        for request, half in zip(self._requests, (images[:middle], images[middle:]), strict=True):
            try:
                request.set_input_tensor(Tensor(half, shared_memory=True))
                request.start_async(share_inputs=True)
                under_way.append(request)
            except (RuntimeError, MemoryError) as error:
                failures.append(error)
        for request in under_way:  # both, whatever becomes of the first: they read memory that is the caller's
            try:
                request.wait()
            except (RuntimeError, MemoryError) as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return np.concatenate([request.get_output_tensor().data for request in under_way])


class OpenVinoBackend:
    """Compiled for this CPU; takes batches of any size, but sets up each new one, which takes time and memory.

    `precision` is float32, bfloat16 or int8, `floats` that of what is left in floats. The model's weights lie in
    `constants`. Large batches are computed in two halves as `split` says; None does so while that is the quicker
    way, and not at all if it answers `examples`, uint8 (n, 3, S, S), otherwise. Without `large_batches` they are
    computed as small ones are.
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
        large_batches: bool,
        examples: NDArray[np.uint8],
    ) -> None:
        self.dtype = precision
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[floats],
            # Threads that may not move stand still beside another program; those that may now and then share a core.
            "ENABLE_CPU_PINNING": pin,
        }
        self._compiled: list[CompiledModel] = []
        self._small: Candidate = WholeBatch(self._compile(model, options, "STATIC", LATENCY).create_infer_request())
        self._large: Candidate = self._small
        if large_batches:
            self._large = self._open_large(model, options, split, examples)
        self._split = split  # as asked for: another checkpoint's halves may agree
        self._constants = constants  # OpenVINO may look at them as long as the model lives

    def _open_large(
        self, model: Model, options: dict[str, Any], split: bool | None, examples: NDArray[np.uint8]
    ) -> Candidate:
        """Return what computes large batches: halves, or the whole, or whichever is the faster one at the time."""
        if split is False:
            return WholeBatch(self._compile(model, options, "AUTO", LATENCY).create_infer_request())
        divided = self._compile(model, options, "STATIC", TWO_STREAMS)
        halves = Halves(divided.create_infer_request(), divided.create_infer_request())
        if split:
            return halves
        whole = WholeBatch(self._compile(model, options, "AUTO", LATENCY).create_infer_request())
        if _agree(halves, whole, examples):
            return FasterOfTwo(halves, whole)
        self._compiled.remove(divided)
        return whole

    def _compile(
        self, model: Model, options: dict[str, Any], partitioner: str, streams: dict[str, Any]
    ) -> CompiledModel:
        """Compile for this CPU; `partitioner` says into how many pieces TBB cuts a layer's work.

        STATIC is a piece for each thread. All wait then for the thread that shares its core with the event loop. With
        AUTO there are more, and whichever thread is free takes the next. That costs some 50 us a layer (two cores with
        AMX), as much as the layer's work for a few images.
        """
        if "TBB_PARTITIONER" in core().get_property("CPU", "SUPPORTED_PROPERTIES"):
            options = options | {"TBB_PARTITIONER": partitioner}
        self._compiled.append(core().compile_model(model, "CPU", options | streams))
        return self._compiled[-1]

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend."""
        return {"precision": self.dtype, "runtime": self.runtime, "split_batches": self._split}

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory."""
        way = self._large if len(images) >= HALVES_FROM else self._small
        try:
            return way.logits(np.require(images, requirements=["C", "W"]))
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "allocate" in str(error):
                raise EngineOutOfMemory from error
            raise

    def release_setup_memory(self) -> None:
        """Give back the constants, which OpenVINO has put into an order of its own, and what setting up needed.

        Until then large batches go one way, so that the times of their sizes can be compared.
        """
        if isinstance(self._large, FasterOfTwo):
            self._large.begin_trials()
        for compiled in self._compiled:
            compiled.release_memory()
        self._constants.drop_pages()

    def close(self) -> None:
        """Give the compiled network's memory back."""
        del self._small, self._large, self._compiled, self._constants


def _agree(halves: Candidate, whole: Candidate, examples: NDArray[np.uint8]) -> bool:
    """Return whether both give the same answers. Which of them the self-test meets later is chance."""
    images = np.resize(examples, (max(HALVES_FROM, len(examples)), *examples.shape[1:]))
    worst = difference(whole, halves, images)
    if worst <= TOLERANCE:  # not where it is NaN
        return True
    log.warning("batches are not halved: logits would differ by %.0e of the largest", worst)
    return False
