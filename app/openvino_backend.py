"""The network in OpenVINO: the faster runtime on CPUs (benchmarks/engine_cpu.json), and the one for int8.

Nothing here needs torch, neither to write the network down nor to compute it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from openvino import Model, Tensor

from app.batches import EngineOutOfMemory
from app.cores import available_cores
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.file_backed import FileBacked
from model.folded import fold
from model.openvino_core import core, has_fast_bfloat16
from model.openvino_graph import float_model, quantised_model


def precision_of(settings: Settings) -> str:
    """Return the precision that the settings ask for; "auto" is the faster float."""
    return settings.precision if settings.precision != "auto" else _fast_floats()


def _fast_floats() -> str:
    return "bfloat16" if has_fast_bfloat16() else "float32"


def open_openvino(source: Checkpoint, settings: Settings) -> OpenVinoBackend:
    """Put a checkpoint's network on this CPU, as the settings say. Raises what OpenVINO raises."""
    threads = settings.threads or available_cores()
    precision = precision_of(settings)
    metadata, structure = source.metadata, source.metadata.structure()
    tensors = {name: stored.array() for name, stored in source.stored.items()}
    constants = FileBacked(FileBacked.size_of([one.nbytes for one in tensors.values()]))
    described = (structure, fold(structure, tensors, constants.keep), metadata.mean, metadata.std)
    if precision == "int8":
        model = quantised_model(*described, images=source.facts.self_test_images, threads=threads)
    else:
        model = float_model(*described)
    floats = _fast_floats() if precision == "int8" else precision
    return OpenVinoBackend(model, precision, floats, threads, constants, pin=settings.pin_threads)


class OpenVinoBackend:
    """Compiled for this CPU; any batch size will do.

    `precision` is float32, bfloat16 or int8, `floats` that of what is left in floats. The model's weights lie in
    `constants`.
    """

    runtime = "openvino"
    device = "cpu"

    def __init__(
        self, model: Model, precision: str, floats: str, threads: int, constants: FileBacked, *, pin: bool = False
    ) -> None:
        self.dtype = precision
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[floats],
            # Threads that may not move stand still beside another program; those that may now and then share a core.
            "ENABLE_CPU_PINNING": pin,
        }
        if "TBB_PARTITIONER" in core().get_property("CPU", "SUPPORTED_PROPERTIES"):
            # A layer's work in more pieces than threads, for whichever thread is free: with a piece each, all wait for
            # the one that shares its core with the event loop.
            options["TBB_PARTITIONER"] = "AUTO"
        self._request = core().compile_model(model, "CPU", options).create_infer_request()
        self._constants = constants  # OpenVINO may look at them as long as the request lives

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes)."""
        try:
            # By way of a tensor: the binding's own dealings with arrays take 5 % of a batch of one. A tensor wants what
            # may be written to, which images that lie in a request's body are not, and does not keep it alive.
            images = np.require(images, requirements=["C", "W"])
            self._request.set_input_tensor(Tensor(images, shared_memory=True))
            self._request.infer(share_outputs=True)
            logits: NDArray[np.float32] = self._request.get_output_tensor().data.copy()
        except RuntimeError as error:
            if "bad_alloc" in str(error) or "allocate" in str(error):
                raise EngineOutOfMemory from error
            raise
        return logits

    def settle(self) -> None:
        """Give back the constants, which OpenVINO has put into an order of its own, and what setting up needed."""
        self._request.get_compiled_model().release_memory()
        self._constants.let_go()

    def close(self) -> None:
        """Give the compiled network's memory back."""
        del self._request, self._constants
