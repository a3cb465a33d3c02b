"""Which instructions the processor has. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def processor_name(info: Path = CPU_INFO) -> str:
    """Return what the first core calls itself; "" on other systems than Linux."""
    return _first(info, "model name")


def processor_flags(info: Path = CPU_INFO) -> frozenset[str]:
    """Return the flags of the first core, such as "avx2" or "amx_bf16", by Linux' names; none on other systems."""
    return frozenset(_first(info, "flags").split())


def _first(info: Path, key: str) -> str:
    text = info.read_text() if info.exists() else ""
    return text.partition(key)[2].partition("\n")[0].partition(":")[2].strip()
