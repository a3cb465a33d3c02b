"""Whether bfloat16 is faster than float32 on a device, in torch. For OpenVINO, model/runtimes/openvino_core.py says."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch

from model.hardware.timing import is_clearly_faster

# A product of two such matrices takes milliseconds, and is large enough to keep all threads busy.
MEASURED_SIZE = 512


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
    """Multiply matrices in both."""
    return is_clearly_faster(_product(torch.bfloat16), than=_product(torch.float32))


def _product(dtype: torch.dtype) -> Callable[[], torch.Tensor]:
    matrix = torch.full((MEASURED_SIZE, MEASURED_SIZE), 0.5, dtype=dtype)
    return partial(torch.mm, matrix, matrix)
