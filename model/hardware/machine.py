"""The machine that a figure was measured on, as it stands in every record."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model.hardware.processor import processor_flags, processor_name

ROOT = Path(__file__).resolve().parents[2]
# Of the processor's, those that a figure depends on.
INSTRUCTIONS = {"avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_int8"}
# Files that benchmarks write while they run one after the other: a new record is no change of the measured code.
WRITTEN = ("*.json", "*.md", "*.png", "benchmarks/profile_http.txt")


def describe(device: str = "cuda") -> dict[str, Any]:
    """Return processor, cores, instruction sets, GPU, library versions and, in a repository, the commit.

    The GPU is that of `device`, such as "cuda:1", by default the first one; for "cpu" it is None. This imports torch,
    the pages of which a process that measures others' memory must not share with them.
    """
    import torch

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": processor_name() or platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "instructions": sorted(processor_flags() & INSTRUCTIONS),
        "gpu": torch.cuda.get_device_name(device) if device != "cpu" and torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **_commit(),
    }


def _commit(root: Path = ROOT) -> dict[str, str]:
    """Return the short hash of the checked-out commit, with "+" if tracked files differ from it; {} without git."""
    if not (root / ".git").exists():  # for an installed package, git would find any repository around it
        return {}
    changed = ["status", "--porcelain", "--untracked-files=no", "--", ".", *(f":(exclude){name}" for name in WRITTEN)]
    try:
        commit, changes = (_git(root, *command) for command in (["rev-parse", "--short", "HEAD"], changed))
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"commit": commit + "+" * bool(changes)}


def _git(root: Path, *arguments: str) -> str:
    """Return what git prints. Raises OSError without git, CalledProcessError if it fails."""
    done = subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True, text=True)  # noqa: S603, S607
    return done.stdout.strip()
