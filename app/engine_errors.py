"""The errors by which engines and their backends say what they cannot do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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
