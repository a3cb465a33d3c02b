"""What the service depends on, a line each, out of pyproject.toml: `python tools/requirements.py [--cpu-only]`.

With `--cpu-only`, without what only training, evaluation and GPUs need. Python alone runs it, before anything is
installed.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"
FOR_TRAINING_AND_GPUS = {"torch", "torchvision", "tqdm"}


def requirements(text: str, *, cpu_only: bool) -> list[str]:
    """Return the dependencies that pyproject.toml, `text`, lists."""
    every: list[str] = tomllib.loads(text)["project"]["dependencies"]
    return [line for line in every if not (cpu_only and _name(line) in FOR_TRAINING_AND_GPUS)]


def _name(line: str) -> str:
    return re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0].lower()


if __name__ == "__main__":
    print("\n".join(requirements(PROJECT.read_text(), cpu_only="--cpu-only" in sys.argv[1:])))
