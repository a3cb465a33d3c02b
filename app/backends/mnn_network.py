"""A checkpoint's network in MNN: float32 and nothing else, any number of images.

MNN has two interfaces in Python; this is the older one, which lets other threads go on while it computes.
"""

from __future__ import annotations

import ctypes
import os
import sys
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.engine_errors import EngineOutOfMemory
from model.checkpoint import Checkpoint
from model.runtimes.file_backed import claim
from model.runtimes.folded_layers import fold
from model.runtimes.mnn_graph import mnn_model


class MnnModel:
    """A checkpoint written down for MNN; any number of networks can be opened from it. Raises OSError.

    MNN takes a model from files alone. On Linux they have no names, and need no disk, which may be full or read-only.
    """

    def __init__(self, source: Checkpoint) -> None:
        self.metadata, spec = source.metadata, source.metadata.network_spec()
        layers = fold(spec, {name: stored.array() for name, stored in source.stored.items()})
        if sys.platform == "linux":
            size = sum(array.nbytes for layer in layers.values() for array in layer)
            self.path, self.weights_path = self._path(os.memfd_create("model")), self._path(_room(size))
        else:
            self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
            self.path, self.weights_path = (Path(self._folder.name, name) for name in ("model", "weights"))
            self.weights_path.touch()
        with self.weights_path.open("r+b") as weights:  # which keeps the room
            self.path.write_bytes(mnn_model(spec, layers, self.metadata.input_size, weights))

    def _path(self, descriptor: int) -> Path:
        """Return the path of an open file, which is closed when this object is gone."""
        weakref.finalize(self, os.close, descriptor)
        return Path(f"/proc/self/fd/{descriptor}")


def _room(size: int) -> int:
    """Return the descriptor of a file of `size` bytes: on the disk, if there is room, or else in memory."""
    try:
        return claim(size)
    except OSError:
        return os.memfd_create("weights")


class MnnNetwork:
    """A network on `threads` threads. Raises what MNN raises."""

    def __init__(self, model: MnnModel, threads: int) -> None:
        metadata = model.metadata
        self._model = model  # a new session reads its files again
        self._scale = 1 / (np.array(metadata.std, np.float32).reshape(3, 1, 1) * 255)
        self._mean = np.array(metadata.mean, np.float32).reshape(3, 1, 1) * 255
        self._classes = len(metadata.classes)
        self._options = {"backend": "CPU", "numThread": threads}
        self._interpreter = mnn().Interpreter(str(model.path))
        self._interpreter.setExternalFile(str(model.weights_path))
        self._shape: tuple[int, ...]
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


@cache
def mnn() -> Any:  # noqa: ANN401 - MNN has no types
    """Import MNN. It prints a line about the processor on standard output, where `resnet predict` writes answers."""
    with _silent_stdout():
        import MNN
    return MNN


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
