"""Which arithmetic a device is good at."""

from __future__ import annotations

import torch


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there: Ampere or newer GPUs, CPUs with matrix tiles (AMX).

    AVX512-BF16 without AMX is left out on purpose: there, bfloat16 measured slower than float32
    (benchmarks/engine_cpu.json).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return bool(supported and supported())
