"""The device to train and to measure on, by its name on the command line, and whether its memory was too small."""

from __future__ import annotations

import re

import torch

from model.hardware.cores import available_cores

# What the driver, cuDNN and cuBLAS say, and torch of a CPU. Unlike other CUDA errors "CUDA error: out of memory", which
# is what the driver's own calls say, such as those for graphs and pinned memory, is over once it has been reported.
NO_MEMORY = (
    "can't allocate memory",
    "CUDA error: out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

# What torch says when no kernel of cuDNN works: there is none for this GPU, or none got its workspace, an error that
# torch keeps to itself. Where such a convolution has worked before, it is the memory.
NO_ENGINE = "unable to find an engine to execute this computation"


class DeviceError(ValueError):
    """There is no such device."""


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA if there is one, else the CPU. Raises DeviceError."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no device {name}: this machine has {torch.cuda.device_count()} usable GPUs")
    return device


def limit_threads() -> None:
    """Let torch compute in no more threads than there are cores for: it does not know of a container's limits."""
    torch.set_num_threads(min(torch.get_num_threads(), available_cores()))


def lacks_memory(error: BaseException) -> bool:
    """Whether memory was missing, on a device or for Python itself."""
    return isinstance(error, MemoryError) or is_out_of_memory(error)


def is_out_of_memory(error: BaseException | None, *, has_worked: bool = False) -> bool:
    """Whether it says so, or was raised in the handling of one that does: ending a failed capture raises again.

    `has_worked` says whether the same has been computed before, in a batch of whatever size: see NO_ENGINE.
    """
    texts = (*NO_MEMORY, NO_ENGINE) if has_worked else NO_MEMORY
    while error is not None:
        if isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts):
            return True
        error = error.__context__
    return False
