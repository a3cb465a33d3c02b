"""Where a figure was taken: written into every file of evidence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from model.machine import describe

FOLDER = Path(__file__).resolve().parent


def write(name: str, result: dict[str, Any]) -> None:
    """Write a file of evidence and print it."""
    text = json.dumps({"machine": describe(), **result}, indent=1)
    path = FOLDER / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text + "\n")
    print(text)


def read(name: str) -> dict[str, Any]:
    """Return a file of evidence. Raises FileNotFoundError if it has not been made yet."""
    loaded: dict[str, Any] = json.loads((FOLDER / name).read_text())
    return loaded
