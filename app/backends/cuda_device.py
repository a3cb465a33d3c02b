"""Whether torch can use a GPU here, and if it cannot, what an operator should know."""

from __future__ import annotations

import torch

from app.engine_errors import EngineUnavailable

# The oldest NVIDIA driver for each major version of the CUDA that torch was built with.
MIN_DRIVERS = {"12": "R525", "13": "R580"}


def is_usable() -> bool:
    """Whether torch can compute on any."""
    return torch.cuda.is_available()


def require_gpu(device: str) -> None:
    """Raise EngineUnavailable unless torch can compute on `device`, "cuda" or "cuda:N"."""
    if not is_usable():
        raise EngineUnavailable(f"device {device} cannot be used: {why_no_cuda()}")
    count, index = torch.cuda.device_count(), torch.device(device).index or 0
    if index >= count:
        raise EngineUnavailable(f"there is no device {device}: torch sees {count} of them")


def why_no_cuda() -> str:
    """Return what torch says when it is made to try, and what driver its CUDA asks for."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "no reason is known"
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    needed = MIN_DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    return f"{reason}; CUDA {torch.version.cuda} needs driver {needed} or newer" if needed else reason
