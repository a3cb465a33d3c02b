"""The network in PyTorch: on CUDA, and on a CPU where OpenVINO is not installed."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from app.batches import EngineBroken, EngineOutOfMemory
from model.checkpoint import Checkpoint
from model.fuse import fold_batch_norm
from model.transforms import normalise


class TorchBackend:
    """Batch norm folded, channels last, in float32 or bfloat16 (`precision`)."""

    runtime = "torch"

    def __init__(self, source: Checkpoint, device: str, precision: str, threads: int) -> None:
        self._device = torch.device(device)
        self.device = str(self._device)
        self.dtype = precision
        self._dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]
        torch.set_num_threads(threads)
        network = fold_batch_norm(source.network())
        self.network = network.to(self._device, self._dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = torch.tensor(source.metadata.mean, device=self._device)
        self.std = torch.tensor(source.metadata.std, device=self._device)

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes)."""
        try:
            return self._forward(images)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise EngineOutOfMemory from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise EngineOutOfMemory from error
            if self._device.type == "cuda" and "CUDA error" in str(error):  # sticky: the context is lost
                raise EngineBroken("the CUDA context is lost") from error
            raise

    @torch.inference_mode()
    def _forward(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        batch = torch.from_numpy(images).to(self._device)
        inputs = normalise(batch, self.mean, self.std).to(self._dtype, memory_format=torch.channels_last)
        logits: NDArray[np.float32] = self.network(inputs).float().cpu().numpy()
        return logits

    def close(self) -> None:
        """Give the network's memory back to the device."""
        del self.network
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
