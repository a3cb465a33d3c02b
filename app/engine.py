"""A checkpoint on a device: uint8 batch in, probabilities out.

What computes the logits is one of app/backends/: for CUDA, torch, OpenVINO or MNN. The last two do without torch, and
so does this room: what brings it is imported where it is needed.
Images go to the device as uint8 and are normalised there; forward, calibration and softmax follow. Where a size has to
be set up, batches are padded to a few fixed sizes, which are all run once before the engine counts as warm.
"""

from __future__ import annotations

import logging
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from app.backends import measured
from app.batching.batch_sizes import choose_batch_sizes
from app.memory import clear_error_frames
from app.settings import Settings
from model import checkpoint
from model.checkpoint import Checkpoint
from model.metadata import ServedCheckpoint

log = logging.getLogger(__name__)

# The most images a batch is tried with. A processor has reached its best rate long before; on a GPU, 1024 images are
# four pieces over two lanes (app/backends/cuda_backend.py).
MAX_BATCH_BY_DEVICE = {"cpu": 64, "cuda": 1024}

# A size costs CUDA a recorded graph and a CPU 1.4 MB; a padded image costs a CPU as much as a real one.
LADDER_STEPS = {"cpu": 4, "cuda": 2}

# What batches are measured by: a CPU's own time tells more than the clock on the wall, beside other programs.
CLOCKS = {"cpu": measured.CLOCKS, "cuda": (time.perf_counter,)}

# Eight-bit integers move probabilities by more than another order of float additions does.
INT8_TOLERANCE = 0.1


# Where WSL puts the library of NVIDIA's driver, if there is one.
WSL_DRIVERS = Path("/usr/lib/wsl/lib")


class EngineUnavailable(RuntimeError):
    """This machine cannot run the engine that the settings ask for; the message is one line for the operator."""


class RuntimeUnfit(EngineUnavailable):
    """The runtime that was asked for is there, but does not do for this checkpoint; another one may."""


class SelfTestFailed(RuntimeError):
    """The engine does not reproduce the answers that training measured; the message says by how much."""


class Engine(Protocol):
    """What the service needs of an engine; another process or machine could stand behind it."""

    card: dict[str, Any]
    """Name, version, sha256, classes, input_size, device, dtype and the rest of the checkpoint's metadata."""

    batch_sizes: tuple[int, ...]
    """The sizes that batches are padded to, increasing; the last one is the most images that `run` takes."""

    images_per_s: float
    """What it did in a full batch when it was warm; 0 if that was not measured."""

    @property
    def tuning(self) -> dict[str, Any]:
        """The settings that are chosen by measurement, as this engine has them; one that is given them is its like."""

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to probabilities (N, classes). Raises EngineOutOfMemory and EngineBroken."""

    def close(self) -> None:
        """Give back the memory; the engine never runs again."""


class Backend(Protocol):
    """A checkpoint's network in some runtime, on one device, for one thread at a time."""

    runtime: str
    device: str
    dtype: str

    any_size: bool
    """Whether a batch of a size that has never been run is computed as readily as another."""

    @property
    def split_batches(self) -> bool:
        """Whether batches are computed in two halves, see app/backends/openvino_backend.py."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken."""

    def settle(self) -> None:
        """Give back what only setting up needed; every size that batches will have has been run."""

    def close(self) -> None:
        """Give back the memory."""


class CheckpointEngine:
    """A backend with what surrounds it: padding, calibration, self-test."""

    def __init__(self, facts: ServedCheckpoint, backend: Backend, batch_sizes: tuple[int, ...] = ()) -> None:
        self.backend = backend
        self.batch_sizes = batch_sizes
        self.images_per_s = 0.0
        self.card = _card(facts, backend)
        self.calibration = facts.metadata.calibration
        self._self_test_images = facts.self_test_images
        self._self_test_probabilities = facts.self_test_probabilities
        tolerance = facts.metadata.self_test_tolerance
        self._tolerance = max(tolerance, INT8_TOLERANCE) if backend.dtype == "int8" else tolerance

    @property
    def tuning(self) -> dict[str, Any]:
        """See Engine."""
        backend = self.backend
        tuning = {
            "batch_sizes": self.batch_sizes,
            "precision": backend.dtype,
            "runtime": backend.runtime,
            "split_batches": backend.split_batches,
        }
        if _kind(backend) == "cuda":  # not by speed: another checkpoint may need a finer one (app/backends/choice.py)
            del tuning["precision"]
        return tuning

    def run(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S), N at most the largest batch size, to float32 (N, classes)."""
        count = len(images)
        padded = next((size for size in self.batch_sizes if size >= count), count)
        if padded > count:
            images = np.concatenate([images, np.zeros((padded - count, *images.shape[1:]), np.uint8)])
        return self.calibration.probabilities_numpy(self.backend.logits(images)[:count])

    def prepare(self, largest: int) -> None:
        """Choose the batch sizes by measurement, up to `largest`, or warm up those given; then time a full batch."""
        size = self.card["input_size"]
        if not self.batch_sizes:
            kind = _kind(self.backend)
            clocks = CLOCKS[kind]
            steps = largest if self.backend.any_size else LADDER_STEPS[kind]
            self.batch_sizes = choose_batch_sizes(self.run, size, largest, steps=steps, clocks=clocks)
        to_run = {self.batch_sizes[0], self.batch_sizes[-1]} if self.backend.any_size else self.batch_sizes
        for batch_size in sorted(to_run, reverse=True):  # the memory of the largest then serves the smaller ones
            self.run(np.zeros((batch_size, 3, size, size), np.uint8))
        self.backend.settle()
        full = np.zeros((self.batch_sizes[-1], 3, size, size), np.uint8)
        started = time.perf_counter()
        self.run(full)
        self.images_per_s = len(full) / max(time.perf_counter() - started, 1e-9)

    def self_test(self, step: int = 1) -> None:
        """Reproduce the checkpoint's own answers, in batches of `step` images. Raises SelfTestFailed."""
        parts = [self.run(self._self_test_images[i : i + step]) for i in range(0, len(self._self_test_images), step)]
        worst = float(np.abs(np.concatenate(parts) - self._self_test_probabilities).max())
        if not worst <= self._tolerance:  # also catches NaN
            raise SelfTestFailed(
                f"self-test failed: probabilities differ by {worst:.3f} from those measured in training "
                f"(tolerance {self._tolerance})"
            )
        log.info("self-test passed, %d at once: probabilities within %.4f of those measured in training", step, worst)

    def close(self) -> None:
        """Give the network's memory back to the device, for whoever loads the next one."""
        self.backend.close()


def load_engine(settings: Settings) -> CheckpointEngine:
    """Load, verify, self-test and warm up.

    Raises CheckpointError, EngineUnavailable, SelfTestFailed, or what the runtime raises.
    """
    source = checkpoint.load(settings.weights, settings.weights_sha256)
    backend = _open_with_torch(source, settings) if may_need_torch(settings) else _open_without(source, settings)
    engine = CheckpointEngine(source.facts, backend, settings.batch_sizes or ())
    try:
        engine.self_test()
        engine.prepare(min(MAX_BATCH_BY_DEVICE[_kind(backend)], settings.max_queue_images))
        engine.self_test(engine.batch_sizes[-1])  # another network may compute large batches than single images
    except BaseException as error:
        clear_error_frames(error)  # what it still holds would not be given back by the next line
        engine.close()  # a GPU's streams are dealt in turn: one that is not given back is somebody else's in the end
        raise
    return engine


def may_need_torch(settings: Settings) -> bool:
    """Whether torch may be what computes: it takes two seconds to import and hundreds of megabytes for good."""
    if settings.runtime == "torch" or not _is_installed("openvino"):
        return True
    return _gpu_in_sight() and _is_installed("torch") if settings.device == "auto" else settings.device != "cpu"


def _gpu_in_sight() -> bool:
    """Whether there is a device file of a GPU that torch might use: NVIDIA, Tegra, or NVIDIA's in WSL."""
    if any(file for name in ("nvidia*", "nvhost*", "nvmap") for file in Path("/dev").glob(name)):
        return True
    return Path("/dev/dxg").exists() and any(WSL_DRIVERS.glob("libcuda.so*"))  # WSL has the file for every maker's GPU


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _open_with_torch(source: Checkpoint, settings: Settings) -> Backend:
    if not _is_installed("torch"):
        if settings.runtime != "torch" and settings.device in {"auto", "cpu"}:
            raise EngineUnavailable("neither OpenVINO nor PyTorch is installed here: pip install openvino")
        instead = "" if settings.runtime == "torch" else "; or device cpu"
        raise EngineUnavailable(f"PyTorch is not installed here: pip install torch torchvision tqdm{instead}")
    from app.backends.choice import open_backend

    return open_backend(source, settings)


def _open_without(source: Checkpoint, settings: Settings) -> Backend:
    from app.backends.mnn_backend import open_on_cpu

    if settings.device == "auto" and _gpu_in_sight():
        log.warning("there is a GPU, but PyTorch is not installed here: serving on the CPU")
    return open_on_cpu(source, settings)


def _kind(backend: Backend) -> str:
    """Return "cpu" or "cuda"."""
    return backend.device.partition(":")[0]


def _card(facts: ServedCheckpoint, backend: Backend) -> dict[str, Any]:
    fields = facts.metadata.model_dump(mode="json", exclude={"format", "self_test_tolerance"})
    return fields | {
        "version": facts.version,
        "sha256": facts.sha256,
        "calibrated": facts.metadata.temperature_fitted_on not in {"not fitted", "given"},
        "device": backend.device,
        "dtype": backend.dtype,
        "runtime": backend.runtime,
    }
