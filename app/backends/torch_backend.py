"""The network in PyTorch, operation by operation.

On a CPU where OpenVINO is not installed. On CUDA, what every faster way (cuda_proof.py) is compared with, and
what is left if none of them works.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from app.engine_errors import EngineBroken, EngineOutOfMemory
from app.memory import clear_error_frames
from model.checkpoint import Checkpoint
from model.hardware.device import is_out_of_memory
from model.hardware.precision import has_fast_bfloat16
from model.runtimes.batch_norm_folding import fold_batch_norm
from model.transforms import scale_and_offset, scale_and_shift

# Beside a GPU the processor has next to nothing to compute. A host of eight GPUs has hundreds of cores, and each thread
# takes memory, and one of the processes that a container may have.
MAX_THREADS_BESIDE_A_GPU = 8


def fast_float(device: str) -> str:
    """Return the faster float on a device, "cpu", "cuda" or "cuda:N"."""
    return "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"


class TorchBackend:
    """Batch norm folded, channels last, in float32, bfloat16 or float16 (`precision`)."""

    runtime = "torch"
    resizes_freely = False
    overlaps = False

    def __init__(self, source: Checkpoint, device: str, precision: str, threads: int) -> None:
        self._device = torch.device(device)
        self.device = str(self._device)
        self.enter()
        self.dtype = precision
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
        self._dtype = dtypes[precision]
        torch.set_num_threads(min(threads, MAX_THREADS_BESIDE_A_GPU) if self._device.type == "cuda" else threads)
        if self._device.type == "cuda" and precision == "float32":
            # By default cuDNN rounds what it convolves to the ten bits of TF32, which are float16's. This switch is the
            # whole process', and stays.
            torch.backends.cudnn.allow_tf32 = False
        network = fold_batch_norm(source.network())
        self.network = network.to(self._device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        mean, std = (torch.tensor(of, device=self._device) for of in (source.metadata.mean, source.metadata.std))
        # Once: in each batch, they would be five more kernels of a CUDA graph.
        self._scale, self._offset = scale_and_offset(mean, std)
        self._has_worked = False

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend."""
        return {"precision": self.dtype, "runtime": self.runtime}

    def enter(self) -> None:
        """Make a CUDA device that has a number the calling thread's own; to be called before it works there.

        In a thread whose device is 0, whatever takes another one for a while, such as a stream, goes back to device 0
        and sets up a context there, of hundreds of megabytes.
        """
        if self._device.index is not None and self._device.type == "cuda":
            torch.cuda.set_device(self._device)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken."""
        with torch_errors_classified(self._device, has_worked=self._has_worked):
            logits = self._forward(images)
        self._has_worked = True
        return logits

    @torch.inference_mode()
    def _forward(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        # torch warns of images that may not be written to, such as those that lie in a request's body.
        batch = torch.from_numpy(np.require(images, requirements="W")).to(self._device)
        logits: NDArray[np.float32] = self.logits_by(self.network, batch).cpu().numpy()
        return logits

    def logits_by(self, network: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        """Map uint8 (N, 3, S, S) to float32 (N, classes), both on the device; `network` takes normalised images."""
        inputs = scale_and_shift(images, self._scale, self._offset)
        return network(inputs.to(self._dtype, memory_format=torch.channels_last)).float()

    def release_setup_memory(self) -> None:
        """Nothing is left over."""

    def close(self) -> None:
        """Give the network's memory back to the device."""
        del self.network
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


@contextmanager
def torch_errors_classified(device: torch.device, *, has_worked: bool = False) -> Iterator[None]:
    """Turn torch's errors on `device` into EngineOutOfMemory and EngineBroken; others pass.

    `has_worked` says whether the same has been computed before, in a batch of whatever size.
    """
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error, has_worked=has_worked):
            clear_error_frames(error)  # a smaller batch is tried while it is being handled
            if device.type == "cuda":
                torch.cuda.empty_cache()
            raise EngineOutOfMemory from error
        if device.type == "cuda" and "CUDA error" in str(error):  # sticky: the context is lost
            raise EngineBroken("the CUDA context is lost") from error
        raise
