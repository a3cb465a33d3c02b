"""A checkpoint on a device: uint8 batch in, probabilities out.

What computes the logits is one of app/backends/, chosen and opened by choice.py: for CUDA, torch, OpenVINO or MNN. The
last two do without torch, and so does this module.
Images go to the device as uint8 and are normalised there; forward, calibration and softmax follow. Where a size has to
be set up, batches are padded to a few fixed sizes, which are all run once before the engine counts as warm.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from app.backends.agreement import BOUND, compared_pictures, max_difference_between_batch_sizes, too_much
from app.backends.backend import Backend, OverlappingBackend, device_kind
from app.backends.batch_sizes import LADDER_STEPS, MIN_SPEEDUP, choose_batch_sizes, most_images
from app.backends.choice import open_backend
from app.engine_errors import memory_errors_classified
from app.memory import clear_error_frames
from app.settings import Settings
from model import checkpoint
from model.checkpoint import Checkpoint
from model.hardware import timing

log = logging.getLogger(__name__)

# What batches are timed by; on a GPU processor time says nothing.
CLOCKS = {"cpu": timing.CLOCKS, "cuda": (time.perf_counter,)}

# Eight-bit integers move probabilities by more than another order of float additions does.
INT8_TOLERANCE = 0.1


class SelfTestFailed(RuntimeError):
    """The engine does not reproduce the answers that training measured; the message says by how much."""


class Engine(Protocol):
    """What the service needs of an engine; another process or machine could stand behind it."""

    card: dict[str, Any]
    """Name, version, sha256, classes, input_size, device, dtype and the rest of the checkpoint's metadata."""

    batch_sizes: tuple[int, ...]
    """The sizes that batches are padded to, increasing; the last one is the most images that `run` takes."""

    overlaps: bool
    """Whether `run` may be called again, in a second thread, once it has called `nearly_done`."""

    images_per_s: float
    """What it did in a full batch when it was warm; 0 if that was not measured."""

    @property
    def tuning(self) -> dict[str, Any]:
        """What a reload keeps: the settings that may be left open, as they were chosen or measured for this engine."""

    def run(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to probabilities, float32 (N, classes). Raises EngineOutOfMemory and EngineBroken.

        `nearly_done` may be called once, when parts of the device are about to have nothing to do.
        """

    def close(self) -> None:
        """Give back the memory; the engine never runs again."""


class CheckpointEngine:
    """A backend with what surrounds it: padding, calibration, self-test."""

    def __init__(self, source: Checkpoint, backend: Backend, batch_sizes: tuple[int, ...] = ()) -> None:
        self.backend = backend
        self.overlaps = backend.overlaps
        self.batch_sizes = batch_sizes
        self.images_per_s = 0.0
        self.card = _card(source, backend)
        self.calibration = source.metadata.calibration
        self._self_test_images = source.self_test_images
        self._self_test_probabilities = source.self_test_probabilities
        tolerance = source.metadata.self_test_tolerance
        self._tolerance = max(tolerance, INT8_TOLERANCE) if backend.dtype == "int8" else tolerance

    @property
    def tuning(self) -> dict[str, Any]:
        """See Engine."""
        return {"batch_sizes": self.batch_sizes, **self.backend.tuning}

    def run(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S), N at most the largest batch size, to probabilities, float32 (N, classes).

        `nearly_done` is called if the backend `overlaps`. Raises EngineOutOfMemory and EngineBroken.
        """
        count = len(images)
        padded = next((size for size in self.batch_sizes if size >= count), count)
        with memory_errors_classified():
            if padded > count:
                images = np.concatenate([images, np.zeros((padded - count, *images.shape[1:]), np.uint8)])
            if nearly_done is not None and self.overlaps:
                logits = cast(OverlappingBackend, self.backend).logits(images, nearly_done)
            else:
                logits = self.backend.logits(images)
            return self.calibration.probabilities_numpy(logits[:count])

    def prepare(self, largest: int) -> None:
        """Choose the batch sizes by measurement, up to `largest`, or warm up those given; then time a full batch.

        Raises what `run` raises, and SelfTestFailed.
        """
        size = self.card["input_size"]
        if not self.batch_sizes:
            kind = device_kind(self.backend.device)
            clocks = CLOCKS[kind]
            steps = largest if self.backend.resizes_freely else LADDER_STEPS[kind]
            self.batch_sizes = choose_batch_sizes(
                self.run, size, largest, steps=steps, clocks=clocks, min_speedup=MIN_SPEEDUP[kind]
            )
        to_run = {self.batch_sizes[0], self.batch_sizes[-1]} if self.backend.resizes_freely else self.batch_sizes
        for batch_size in sorted(to_run, reverse=True):  # the memory of the largest then serves the smaller ones
            if not np.isfinite(self.run(np.zeros((batch_size, 3, size, size), np.uint8))).all():
                raise SelfTestFailed("self-test failed: no finite answer for a black image")
        self.backend.release_setup_memory()
        full = np.zeros((self.batch_sizes[-1], 3, size, size), np.uint8)
        self.run(full)  # not timed: the first one takes again what was given back just now
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
    backend = open_backend(source, settings)
    engine = CheckpointEngine(source, backend, settings.batch_sizes or ())
    try:
        engine.self_test()
        most = most_images(device_kind(backend.device), settings.engine_threads)
        engine.prepare(min(most, settings.max_queue_images))
        engine.self_test(engine.batch_sizes[-1])  # another network may compute large batches than single images
        if device_kind(backend.device) == "cpu":  # cuda_precision.py has measured it, with more pictures
            _warn_of_disagreement(engine, source)
    except BaseException as error:
        clear_error_frames(error)  # what it still holds would not be given back by the next line
        engine.close()  # a GPU's streams are dealt in turn: one that is not given back is somebody else's in the end
        raise
    return engine


def _warn_of_disagreement(engine: CheckpointEngine, source: Checkpoint) -> None:
    """Warn if single images get other answers than in the largest batch. Raises what `run` raises."""
    single, largest = 1, engine.batch_sizes[-1]
    if largest > single:
        pictures = compared_pictures(source.self_test_images)
        off = max_difference_between_batch_sizes(engine.run, pictures, (single, largest))
        if off > BOUND:
            log.warning("in %s %s", engine.backend.dtype, too_much(off))


def _card(source: Checkpoint, backend: Backend) -> dict[str, Any]:
    fields = source.metadata.model_dump(mode="json", exclude={"format", "self_test_tolerance"})
    return fields | {
        "version": source.version,
        "sha256": source.sha256,
        "calibrated": source.metadata.temperature_fitted_on not in {"not fitted", "given"},
        "device": backend.device,
        "dtype": backend.dtype,
        "runtime": backend.runtime,
    }
