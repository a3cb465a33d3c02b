"""How a module of ours is run in a process of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def module_command(module: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment to run `module` with: found where this process found its own modules.

    Not in whatever folder the process happens to be in, as -m would by itself.
    """
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return [sys.executable, "-P", "-m", module, *arguments], {**os.environ, "PYTHONPATH": path}
