"""Which arithmetic a device is good at, in torch, and how it is told; of OpenVINO model/runtimes/ says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch

from model.hardware.timing import best_times

# A product of two such matrices takes milliseconds, and is large enough to keep all threads busy.
MEASURED_SIZE = 512
MEASURED_TIMES = 7
MAX_RELATIVE_TIME = 0.9


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: Ampere or newer GPUs, CPUs with matrix tiles (AMX), some others.

    AVX512-BF16 alone says little: on one processor that has it bfloat16 ran at 0.6 times the rate of float32, on
    another one at twice the rate. So there a small product is measured, once in a process.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return _cpu_has("_is_amx_tile_supported") or (_cpu_has("_is_avx512_bf16_supported") and _is_measured_faster())


def _cpu_has(question: str) -> bool:
    supported = getattr(torch.cpu, question, None)
    return bool(supported and supported())


@cache
def _is_measured_faster() -> bool:
    """Multiply matrices in both, in turn, and compare the best times of each."""
    sides = MEASURED_SIZE, MEASURED_SIZE
    matrices = {dtype: torch.full(sides, 0.5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)}
    runs = {dtype: partial(torch.mm, matrix, matrix) for dtype, matrix in matrices.items()}
    best = {dtype: seconds for dtype, [seconds] in best_times(runs, MEASURED_TIMES).items()}
    return best[torch.bfloat16] < MAX_RELATIVE_TIME * best[torch.float32]


@contextmanager
def cudnn_switched(name: str, wanted: bool) -> Iterator[None]:
    """Set a switch of torch.backends.cudnn for a while. torch's own `flags` would set all the others, too."""
    before = getattr(torch.backends.cudnn, name)
    setattr(torch.backends.cudnn, name, wanted)
    try:
        yield
    finally:
        setattr(torch.backends.cudnn, name, before)
