"""Which instructions the processor has. Nothing here needs torch."""

from __future__ import annotations

from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def processor_flags(info: Path = CPU_INFO) -> frozenset[str]:
    """Return the flags of the first core, such as "avx2" or "amx_bf16", by Linux' names; none on other systems."""
    text = info.read_text() if info.exists() else ""
    _, _, flags = text.partition("flags")[2].partition("\n")[0].partition(":")
    return frozenset(flags.split())
