"""The network in OpenVINO: the faster runtime on CPUs (benchmarks/engine_cpu.json), and the one for int8."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from openvino import Tensor

from app.batches import EngineOutOfMemory
from model.checkpoint import Checkpoint
from model.file_backed import FileBacked, room_for
from model.openvino_graph import core, float_model, quantised_model
from model.precision import has_fast_bfloat16


class OpenVinoBackend:
    """Compiled for this CPU in float32, bfloat16 or int8 (`precision`); any batch size will do."""

    runtime = "openvino"
    device = "cpu"

    def __init__(self, source: Checkpoint, precision: str, threads: int) -> None:
        self.dtype = precision
        metadata = source.metadata
        weights: FileBacked | None = None
        if precision == "int8":
            images = source.self_test_images.numpy()
            model = quantised_model(source.network(), metadata.mean, metadata.std, images, threads)
            # For what is left in floats.
            precision = "bfloat16" if has_fast_bfloat16(torch.device("cpu")) else "float32"
        else:
            network = source.network()
            weights = _room_for_weights(sum(room_for(tensor.nbytes) for tensor in network.parameters()))
            model = float_model(network, metadata.mean, metadata.std, weights.put if weights else None)
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": {"bfloat16": "bf16", "float32": "f32"}[precision],
        }
        if "TBB_PARTITIONER" in core().get_property("CPU", "SUPPORTED_PROPERTIES"):
            # A layer's work in more pieces than threads, for whichever thread is free: with a piece each, all wait for
            # the one that shares its core with the event loop.
            options |= {"TBB_PARTITIONER": "AUTO", "ENABLE_CPU_PINNING": False}
        self._request = core().compile_model(model, "CPU", options).create_infer_request()
        self._weights = weights  # OpenVINO may look at them as long as the request lives

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
        """Give back the weights, of which OpenVINO has an order of its own, and what the largest batch tried needed."""
        self._request.get_compiled_model().release_memory()
        if self._weights is not None:
            self._weights.let_go()

    def close(self) -> None:
        """Give the compiled network's memory back."""
        del self._request
        self._weights = None


def _room_for_weights(size: int) -> FileBacked | None:
    """Return a file for so many bytes; None where there can be none, and they stay in memory."""
    try:
        return FileBacked(size)
    except (OSError, AttributeError):  # no room, or no such system call
        return None
