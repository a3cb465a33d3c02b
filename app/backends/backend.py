"""What every backend is. Imports none of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


def device_kind(device: str) -> str:
    """Return "cpu" or "cuda" of a device "cpu", "cuda" or "cuda:N"."""
    return device.partition(":")[0]


class Backend(Protocol):
    """A checkpoint's network in some runtime, on one device, for one thread at a time unless it `overlaps`."""

    runtime: str
    device: str
    dtype: str

    resizes_freely: bool
    """Whether a size that has never been run is computed as readily as another, so that no batch need be padded."""

    overlaps: bool
    """Whether it takes another batch, in a second thread, once it is nearly done with one: an OverlappingBackend."""

    @property
    def tuning(self) -> dict[str, Any]:
        """What a reload keeps of the settings that may be "auto", as they were chosen here."""

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 logits (N, classes). Raises EngineOutOfMemory and EngineBroken."""

    def release_setup_memory(self) -> None:
        """Give back what only setting up needed, once every size that batches will have has been run."""

    def close(self) -> None:
        """Give back the memory."""


class OverlappingBackend(Backend, Protocol):
    """A backend that calls `nearly_done` when parts of the device are about to have nothing to do, before the end."""

    def logits(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """See Backend."""
