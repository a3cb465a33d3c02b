"""Batches in MNN, a runtime that convolves in float32 with fewer products (Winograd's way); single images in OpenVINO.

For CPUs whose faster float is float32. Winograd et al.: Lavin & Gray 2015, "Fast Algorithms for Convolutional Neural
Networks", arXiv:1509.09308.
"""

from __future__ import annotations

import ctypes
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.batches import EngineOutOfMemory
from app.cores import available_cores
from app.engine import Backend, EngineUnavailable
from app.measured import batch_of, gain
from app.openvino_backend import open_openvino, precision_of
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.folded import fold
from model.mnn_graph import float_model

log = logging.getLogger(__name__)

# From so many images on MNN computes: it shares the work on one between cores less well than OpenVINO does.
MNN_FROM = 2

# The choice between the two is made with images of so many values together; MNN has to save a tenth, which is what
# OpenVINO's halves may gain beside an event loop.
MEASURED_VALUES = 8 * 3 * 32 * 32
WORTHWHILE = 0.9

# By how much logits may differ, of the largest: Winograd's way rounds differently.
TOLERANCE = 1e-3


def open_on_cpu(source: Checkpoint, settings: Settings) -> Backend:
    """Put a checkpoint's network on this CPU, in the runtime that the settings ask for or in the faster one.

    Raises EngineUnavailable if MNN is asked for and does not work here, and what OpenVINO raises.
    """
    if settings.runtime != "mnn" and not _may_be_faster(settings):
        return open_openvino(source, settings)
    if settings.runtime == "mnn" and precision_of(settings) != "float32":
        raise EngineUnavailable("runtime mnn computes in float32: set precision float32")
    single = open_openvino(source, settings.model_copy(update={"split_batches": False}))
    try:
        batches = Mnn(source, settings.threads or available_cores())
        _compare(single, batches, source.facts.self_test_images)
        if settings.runtime == "mnn" or _is_faster(single, batches, source.facts.self_test_images):
            return MnnBackend(single, batches)
    except Exception as error:
        if settings.runtime == "mnn":
            raise EngineUnavailable(f"runtime mnn does not work here: {error}") from error
        log.warning("MNN is left out: %s", error)
    single.close()
    return open_openvino(source, settings)


def _may_be_faster(settings: Settings) -> bool:
    asked_for_openvino = settings.runtime == "openvino" or settings.split_batches
    return not asked_for_openvino and precision_of(settings) == "float32" and find_spec("MNN") is not None


class Mnn:
    """A checkpoint's network in MNN. Raises what the file system and MNN raise."""

    def __init__(self, source: Checkpoint, threads: int) -> None:
        metadata, structure = source.metadata, source.metadata.structure()
        layers = fold(structure, {name: stored.array() for name, stored in source.stored.items()})
        self._scale = 1 / (np.array(metadata.std, np.float32).reshape(3, 1, 1) * 255)
        self._mean = np.array(metadata.mean, np.float32).reshape(3, 1, 1) * 255
        self._classes = structure.num_classes
        self._options = {"backend": "CPU", "numThread": threads}
        with _as_file(float_model(structure, layers, metadata.input_size)) as path:
            self._interpreter = mnn().Interpreter(path)  # which keeps a copy
        self._shape: tuple[int, ...] = ()
        self._session: Any = None
        self._begin()

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory."""
        inputs = np.subtract(images, self._mean, dtype=np.float32)
        inputs *= self._scale
        if inputs.shape != self._shape:
            self._interpreter.resizeTensor(self._inputs, inputs.shape)
            self._interpreter.resizeSession(self._session)
            self._shape = inputs.shape
        logits = np.zeros((len(images), self._classes, 1, 1), np.float32)
        self._inputs.copyFrom(_tensor(inputs))
        if self._interpreter.runSession(self._session):  # it says no more than that it has no memory for this size
            self._begin()  # one that could not get its memory crashes the next time
            raise EngineOutOfMemory
        outputs = _tensor(logits)
        self._interpreter.getSessionOutput(self._session).copyToHostTensor(outputs)
        return np.array(outputs.getNumpyData(), np.float32).reshape(len(images), self._classes)

    def _begin(self) -> None:
        self._session = None  # gives back the memory of the one before
        self._session = self._interpreter.createSession(self._options)
        self._inputs = self._interpreter.getSessionInput(self._session)
        self._shape = ()


class MnnBackend:
    """`single` for one image, `batches` for more."""

    runtime = "mnn"
    device = "cpu"
    dtype = "float32"
    split_batches = False

    def __init__(self, single: Backend, batches: Mnn) -> None:
        self._single = single
        self._batches = batches

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes)."""
        way = self._batches if len(images) >= MNN_FROM else self._single
        return way.logits(images)

    def settle(self) -> None:
        """Give back what setting up needed."""
        self._single.settle()

    def close(self) -> None:
        """Give both networks' memory back."""
        self._single.close()
        del self._batches


@cache
def mnn() -> Any:  # noqa: ANN401 - MNN has no types
    """Import MNN. It prints a line about the processor on standard output, where `resnet predict` writes answers."""
    with _silent_stdout():
        import MNN
    return MNN


@contextmanager
def _as_file(model: bytearray) -> Iterator[str]:
    """Yield the path of a file that holds the model, the only thing that MNN takes one from."""
    if sys.platform == "linux":  # where it can do without a disk, which may be full or read-only
        with os.fdopen(os.memfd_create("model.mnn"), "wb") as file:
            file.write(model)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.mnn"
            path.write_bytes(model)
            yield str(path)


@contextmanager
def _silent_stdout() -> Iterator[None]:
    """Lose what C code prints on standard output meanwhile."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    try:
        yield
    finally:
        if sys.platform != "win32":
            ctypes.CDLL(None).fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _tensor(array: NDArray[np.float32]) -> Any:  # noqa: ANN401 - MNN has no types
    return mnn().Tensor(array.shape, mnn().Halide_Type_Float, array, mnn().Tensor_DimensionType_Caffe)


def _compare(one: Backend, other: Mnn, images: NDArray[np.uint8]) -> None:
    """Raise ArithmeticError if the two disagree."""
    images = np.resize(images, (MNN_FROM + 1, *images.shape[1:]))
    expected = one.logits(images)
    worst = float(np.abs(other.logits(images) - expected).max() / np.abs(expected).max())
    if not worst <= TOLERANCE:  # also catches NaN
        raise ArithmeticError(f"its logits differ from OpenVINO's by {worst:.0e} of the largest")


def _is_faster(single: Backend, batches: Mnn, images: NDArray[np.uint8]) -> bool:
    images = batch_of(images, MEASURED_VALUES, MNN_FROM)
    gained = gain(single, batches, images)
    log.info("a batch of %d in MNN has %.2f times OpenVINO's rate, by measurement", len(images), gained)
    return gained * WORTHWHILE >= 1
