"""A checkpoint on a device: uint8 batch in, probabilities out. The only place in app/ that touches torch.

Images go to the device as uint8 and are normalised there; forward, calibration and softmax follow. Batches are
padded to a few fixed sizes, which are all run once before the engine counts as warm.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from app.batcher import EngineBroken, EngineOutOfMemory
from app.cores import available_cores
from app.settings import Settings
from model import checkpoint
from model.checkpoint import Checkpoint
from model.fuse import fold_batch_norm
from model.precision import has_fast_bfloat16
from model.transforms import normalise

log = logging.getLogger(__name__)


class SelfTestFailed(RuntimeError):
    """The engine does not reproduce the answers that training measured; the message says by how much."""


class Engine(Protocol):
    """What the service needs of an engine; another process or machine could stand behind it."""

    card: dict[str, Any]
    """Name, version, sha256, classes, input_size, device, dtype and the rest of the checkpoint's metadata."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to probabilities (N, classes). Raises EngineOutOfMemory and EngineBroken."""

    def close(self) -> None:
        """Give back the memory; the engine never runs again."""


class TorchEngine:
    """The network of a checkpoint, ready to run on one device, from one thread at a time."""

    def __init__(
        self, source: Checkpoint, *, device: str, precision: str, batch_sizes: tuple[int, ...], threads: int
    ) -> None:
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        if precision == "auto":
            precision = "bfloat16" if has_fast_bfloat16(self.device) else "float32"
        self.dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[precision]
        self.batch_sizes = batch_sizes
        torch.set_num_threads(threads or available_cores())
        self.card = _card(source, str(self.device), precision)
        metadata = source.metadata
        network = fold_batch_norm(source.network())
        self.network = network.to(self.device, self.dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.mean = torch.tensor(metadata.mean, device=self.device)
        self.std = torch.tensor(metadata.std, device=self.device)
        self.calibration = metadata.calibration
        self._self_test_images = source.self_test_images.numpy()
        self._self_test_probabilities = source.self_test_probabilities.numpy()
        self._tolerance = metadata.self_test_tolerance

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S), N at most the largest batch size, to float32 (N, classes)."""
        try:
            return self._forward(images)
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise EngineOutOfMemory from error
        except RuntimeError as error:
            if "can't allocate memory" in str(error):
                raise EngineOutOfMemory from error
            if self.device.type == "cuda" and "CUDA error" in str(error):  # sticky: the context is lost
                raise EngineBroken("the CUDA context is lost") from error
            raise

    @torch.inference_mode()
    def _forward(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        count = len(images)
        padded = next(size for size in self.batch_sizes if size >= count)
        if padded > count:
            images = np.concatenate([images, np.zeros((padded - count, *images.shape[1:]), np.uint8)])
        batch = torch.from_numpy(images).to(self.device)
        inputs = normalise(batch, self.mean, self.std).to(self.dtype, memory_format=torch.channels_last)
        logits = self.network(inputs)[:count].float()
        probabilities: NDArray[np.float32] = self.calibration.probabilities(logits).cpu().numpy()
        return probabilities

    def warm_up(self) -> None:
        """Run every batch size once, so that no request pays for what a device does at first sight."""
        size = self.card["input_size"]
        for batch_size in self.batch_sizes:
            self.run(np.zeros((batch_size, 3, size, size), np.uint8))

    def close(self) -> None:
        """Give the network's memory back to the device, for whoever loads the next one."""
        del self.network
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def self_test(self) -> None:
        """Reproduce the checkpoint's own answers. Raises SelfTestFailed."""
        step = self.batch_sizes[-1]
        parts = [self.run(self._self_test_images[i : i + step]) for i in range(0, len(self._self_test_images), step)]
        worst = float(np.abs(np.concatenate(parts) - self._self_test_probabilities).max())
        if not worst <= self._tolerance:  # also catches NaN
            raise SelfTestFailed(
                f"self-test failed: probabilities differ by {worst:.3f} from those measured in training "
                f"(tolerance {self._tolerance})"
            )
        log.info("self-test passed: probabilities within %.4f of those measured in training", worst)


def load_engine(settings: Settings) -> TorchEngine:
    """Load, verify, warm up and self-test. Raises CheckpointError, SelfTestFailed, or what torch raises."""
    engine = TorchEngine(
        checkpoint.load(settings.weights),
        device=settings.device,
        precision=settings.precision,
        batch_sizes=settings.batch_sizes,
        threads=settings.threads,
    )
    engine.self_test()
    engine.warm_up()
    return engine


def _card(source: Checkpoint, device: str, dtype: str) -> dict[str, Any]:
    fields = source.metadata.model_dump(mode="json", exclude={"format", "self_test_tolerance"})
    return fields | {
        "version": source.version,
        "sha256": source.sha256,
        "calibrated": source.metadata.temperature_fitted_on not in {"not fitted", "given"},
        "device": device,
        "dtype": dtype,
    }
