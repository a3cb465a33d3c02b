"""The device to train and to measure on, by the name that the command line has for it."""

from __future__ import annotations

import re

import torch

from model.cores import available_cores


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
