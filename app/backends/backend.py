"""What every backend is, and the errors by which engines and backends say what they cannot do.

Everything else in app/backends/ leads here, as do the engine and the batcher; nothing leads away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class EngineUnavailable(RuntimeError):
    """This machine cannot run the engine that the settings ask for; the message is one line for the operator."""


class RuntimeUnfit(EngineUnavailable):
    """The runtime that was asked for is there, but does not do for this checkpoint; another one may."""


class EngineOutOfMemory(Exception):
    """The batch did not fit; a smaller one may."""


class EngineBroken(Exception):
    """The engine will not work again in this process."""


@contextmanager
def memory_errors_classified() -> Iterator[None]:
    """Turn MemoryError into EngineOutOfMemory: NumPy says so, and bindings in C++ (pybind11) by std::bad_alloc."""
    try:
        yield
    except MemoryError as error:
        raise EngineOutOfMemory from error


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda" of a device "cpu", "cuda" or "cuda:N"."""
    return device.partition(":")[0]


class Backend(Protocol):
    """A checkpoint's network in some runtime, on one device, for one thread at a time."""

    runtime: str
    device: str
    dtype: str

    resizes_freely: bool
    """Whether a size that has never been run is computed as readily as another, so that no batch need be padded."""

    @property
    def tuning(self) -> dict[str, Any]:
        """The settings that were chosen by measurement here; opening one with them makes its like."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken."""

    def release_setup_memory(self) -> None:
        """Give back what only setting up needed, once every size that batches will have has been run."""

    def close(self) -> None:
        """Give back the memory."""
