"""Where a figure was taken: written into every file of evidence."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).resolve().parent


def describe() -> dict[str, Any]:
    """Return processor, cores, instruction sets, GPU and library versions."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = info.partition("flags")[2].partition("\n")[0].split()
    model = info.partition("model name")[2].partition("\n")[0].strip("\t :")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": model or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": sorted(set(flags) & {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }


def write(name: str, result: dict[str, Any]) -> None:
    """Write a file of evidence and print it."""
    text = json.dumps({"machine": describe(), **result}, indent=1)
    (FOLDER / name).write_text(text + "\n")
    print(text)
