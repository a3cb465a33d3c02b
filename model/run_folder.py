"""The folder of a training run: settings, a line of metrics an epoch, and the state to go on from after a crash.

Every file appears whole or not at all; what was written last and is broken off by a crash is dropped on the next start.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import write_atomically


class RunFolder:
    """`settings.json`, `metrics.jsonl`, `state.pt` and, at the end, `checkpoint.safetensors` under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = path / "metrics.jsonl"
        self.state = path / "state.pt"
        self.checkpoint = path / "checkpoint.safetensors"

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and write the settings. Raises OSError if it cannot be written to."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json("settings.json", settings)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the folder."""
        write_atomically(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add an epoch's line."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_metrics_after(self, epoch: int) -> None:
        """Keep the lines of the first `epoch` epochs: what a crash left beyond them will be written again."""
        lines = self.metrics.read_text().splitlines() if self.metrics.exists() else []
        kept = lines[:epoch]  # one line an epoch, and whatever is broken off comes last
        write_atomically(self.metrics, "".join(f"{line}\n" for line in kept).encode())

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the saved state by a newer one."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state, buffer.getvalue())

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none."""
        if not self.state.exists():
            return None
        state: dict[str, Any] = torch.load(self.state, map_location=device, weights_only=True)
        return state
