"""Batches in MNN, a runtime that convolves in float32 with fewer products (Winograd's way); single images in OpenVINO.

For CPUs whose faster float is float32. Winograd et al.: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural
Networks", arXiv:1509.09308.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.backends.agreement import BOUND, compared_pictures, in_batches, probability_difference
from app.backends.backend import Backend
from app.backends.measured import batch_of, speedup
from app.backends.mnn_network import MnnModel, MnnNetwork
from app.backends.openvino_backend import open_openvino
from app.engine_errors import EngineOutOfMemory, RuntimeUnfit, memory_errors_classified
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.hardware.timing import MAX_RELATIVE_TIME

log = logging.getLogger(__name__)

# The smallest batch that MNN computes: it shares the work on one image between cores less well than OpenVINO does.
MNN_FROM = 2

# The choice between the two is made with a batch of MEASURED_VALUES, which OpenVINO computes whole; MNN has to save a
# tenth of the time, about what OpenVINO gains beside an event loop by computing in two pieces at a time.
MEASURED_VALUES = 8 * 3 * 32 * 32
MIN_SPEEDUP = 1 / MAX_RELATIVE_TIME


def open_mnn(source: Checkpoint, settings: Settings) -> MnnBackend:
    """Put a checkpoint's network on this CPU.

    Raises RuntimeUnfit if MNN does not work here or disagrees with OpenVINO, EngineOutOfMemory, and what OpenVINO
    raises.
    """
    single = _open_single(source, settings)
    try:
        with memory_errors_classified():
            return MnnBackend(single, _open_batches(source, settings, single))
    except EngineOutOfMemory:
        single.close()
        raise  # which says nothing of MNN: a reload for which there is no room is refused, not served by another one
    except Exception as error:
        single.close()
        raise RuntimeUnfit(f"runtime mnn does not work here: {error!r}") from error


def open_mnn_if_faster(source: Checkpoint, settings: Settings) -> MnnBackend | None:
    """Do the same, or return None if OpenVINO is as fast with batches, or, with a warning, if MNN does not work here.

    Raises what OpenVINO raises.
    """
    single = _open_single(source, settings)
    try:
        batches = _open_batches(source, settings, single)
        if _is_faster(single, batches, source.self_test_images):
            return MnnBackend(single, batches)
    except Exception as error:
        log.warning("MNN is left out: %r", error)
    single.close()
    return None


def _open_single(source: Checkpoint, settings: Settings) -> Backend:
    """Open what computes single images."""
    return open_openvino(source, settings, "float32", pieces=False)


def _open_batches(source: Checkpoint, settings: Settings, single: Backend) -> MnnNetwork:
    """Open what computes batches. Raises ArithmeticError if it disagrees with `single`, and what MNN raises."""
    batches = MnnNetwork(MnnModel(source), settings.engine_threads)
    _compare(single, batches, source)
    return batches


class MnnBackend:
    """`single` for one image, `batches` for more."""

    runtime = "mnn"
    device = "cpu"
    dtype = "float32"
    resizes_freely = True  # MNN plans anew whenever it gets another size than before
    overlaps = False

    def __init__(self, single: Backend, batches: MnnNetwork) -> None:
        self._single = single
        self._batches = batches

    @property
    def tuning(self) -> dict[str, Any]:
        """See Backend."""
        return {"precision": self.dtype, "runtime": self.runtime}

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory."""
        way = self._batches if len(images) >= MNN_FROM else self._single
        return way.logits(images)

    def release_setup_memory(self) -> None:
        """Give back what setting up needed."""
        self._single.release_setup_memory()

    def close(self) -> None:
        """Give both networks' memory back."""
        self._single.close()
        del self._batches


def _compare(single: Backend, batches: MnnNetwork, source: Checkpoint) -> None:
    """Raise ArithmeticError if the two disagree: Winograd's way rounds differently."""
    images = compared_pictures(source.self_test_images)
    expected = in_batches(single.logits, images, 1)
    worst = probability_difference(source.metadata.calibration, batches.logits(images), expected)
    if not worst <= BOUND:  # also catches NaN
        raise ArithmeticError(f"its probabilities differ from OpenVINO's by {worst:.4f}")


def _is_faster(single: Backend, batches: MnnNetwork, images: NDArray[np.uint8]) -> bool:
    images = batch_of(images, MEASURED_VALUES, MNN_FROM)
    gained = speedup(single, batches, images)
    log.info("a batch of %d in MNN has %.2f times OpenVINO's rate, by measurement", len(images), gained)
    return gained >= MIN_SPEEDUP
