"""The folder of a training run: settings, a line of metrics an epoch, and the state to go on from after a crash.

Every file appears whole or not at all, but for the metrics, to which lines are appended: one that a crash has broken
off is dropped on the next start.
"""

from __future__ import annotations

import fcntl
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.checkpoint import load, pinned_sha256, write_atomically
from model.hardware.device import lacks_memory
from model.metadata import CheckpointError, Metadata
from model.training.errors import TrainingError

# What every state has; newer ones have more.
STATE: dict[str, type | tuple[type, ...]] = {
    "recipe": str,
    "epoch": int,
    "seconds": (int, float),
    "tally": dict,
    "updates": int,
    "network": dict,
    "average": dict,
    "optimiser": dict,
}
TALLY = {"loss_sum", "correct", "steps", "seconds"}

# What a finished run leaves beside its checkpoint: of the JSON files some keys, by which they are known.
LEFT_AT_THE_END = {
    "timing.json": {"training", "total"},
    "evaluation.json": {"model", "version", "top1"},
    "report.json": {"split", "calibration_bins"},
}
PICTURES = ("learning_curves.png", "confusion_matrix.png", "reliability_diagram.png", "most_wrong.png")

LINE_BEGINS = '{"epoch": '


class RunFolder:
    """`settings.json`, `metrics.jsonl`, `state.pt` and, at the end, `checkpoint.safetensors` under one path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.settings = path / "settings.json"
        self.metrics = path / "metrics.jsonl"
        self.state = path / "state.pt"
        self.checkpoint = path / "checkpoint.safetensors"

    def check_ours(self) -> None:
        """Raise TrainingError for files of somebody else's that a run would write over, OSError for unreadable ones.

        Beside the state of a run they are a run's.
        """
        if self.state.exists():
            return
        settings = _read_object(self.settings)
        begun = settings is not None and isinstance(settings.get("recipe"), dict)
        if settings is not None and not begun:
            self._refuse(self.settings.name)
        lines = self.metrics.read_text(errors="replace").splitlines() if self.metrics.exists() else []
        if lines and not (begun and all(_is_ours(line) for line in lines)):
            self._refuse(self.metrics.name)
        for name, keys in LEFT_AT_THE_END.items():
            found = _read_object(self.path / name)
            if found is not None and not (begun and keys <= found.keys()):
                self._refuse(name)
        for name in PICTURES:
            if (self.path / name).exists() and not begun:
                self._refuse(name)

    def _refuse(self, name: str) -> None:
        raise TrainingError(f"{self.path / name} is of no run, and would be written over: give another --out")

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Make the folder and keep it while the block runs. Raises TrainingError if another process has it, OSError."""
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise TrainingError(f"another process trains in {self.path}: give another --out") from None
            except OSError:  # not every network's file system has locks
                pass
            yield
        finally:
            os.close(descriptor)

    def begin(self, settings: dict[str, Any]) -> None:
        """Make the folder and write the settings. Raises OSError if it cannot be written to."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.write_json(self.settings.name, settings)

    def preset(self) -> str | None:
        """Return the name of the preset that the run with a saved state was begun with, None where none is noted."""
        settings = _read_object(self.settings) if self.state.exists() else None
        name = (settings or {}).get("preset")
        return name if isinstance(name, str) else None

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file into the folder."""
        write_atomically(self.path / name, (json.dumps(content, indent=1) + "\n").encode())

    def append_metrics(self, line: dict[str, Any]) -> None:
        """Add an epoch's line."""
        with self.metrics.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def forget_metrics_after(self, epoch: int) -> None:
        """Keep the lines of the first `epoch` epochs: what a crash left beyond them will be written again."""
        found = self.metrics.read_text(errors="replace") if self.metrics.exists() else ""
        kept = "".join(f"{line}\n" for line in found.splitlines() if _epoch_of(line) in range(1, epoch + 1))
        if kept != found:  # what nothing is wrong with may lie where nothing can be written
            write_atomically(self.metrics, kept.encode())

    def save_state(self, state: dict[str, Any]) -> None:
        """Replace the saved state by a newer one."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomically(self.state, buffer.getvalue())

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """Return the saved state, or None if there is none. Raises TrainingError for a damaged one, or no state.

        And what torch raises for want of memory, which damages nothing.
        """
        if not self.state.exists():
            return None
        try:
            state = torch.load(self.state, map_location=device, weights_only=True)
        except Exception as error:  # torch raises many kinds: EOFError, KeyError, RuntimeError, UnpicklingError, ...
            if isinstance(error, OSError) or lacks_memory(error):
                raise
            raise TrainingError(f"{self.state} is damaged: remove it to begin anew") from error
        if not _is_state(state):
            raise TrainingError(f"{self.state} is no state of a run: remove it to begin anew")
        found: dict[str, Any] = state
        return found

    def require_state(self) -> None:
        """Raise TrainingError if no state was saved that a checkpoint could be made of."""
        if not self.state.exists():
            raise TrainingError(f"{self.path} holds no saved state, of which --finish could make a checkpoint")

    def identity(self) -> dict[str, Any] | None:
        """Return what the saved state says of its run: the recipe, "images", and what it started from.

        None without a state. Raises TrainingError as `load_state` does.
        """
        state = self.load_state(torch.device("cpu"))
        if state is None:
            return None
        identity: dict[str, Any] = json.loads(state["recipe"])
        return identity

    def checkpoint_metadata(self) -> Metadata | None:
        """Return what the checkpoint says of itself, None where there is none that is intact."""
        try:
            return load(self.checkpoint).metadata
        except CheckpointError:
            return None

    def check_writable(self) -> None:
        """Raise TrainingError if something here must not be replaced, CheckpointError if pins cannot be read.

        And OSError as `check_ours` does.
        """
        if pinned_sha256(self.checkpoint) is not None:
            raise TrainingError(f"{self.checkpoint} is pinned by the SHA256SUMS beside it: give another --out")
        if self.checkpoint.exists() and not self.state.exists():
            raise TrainingError(
                f"{self.path} holds a checkpoint without the state of its run: give another --out, or move it away"
            )
        self.check_ours()


def _is_state(state: object) -> bool:
    """Return whether what a file holds has all that a run goes on from, in the form that it was saved in."""
    if not isinstance(state, dict) or any(not isinstance(state.get(name), STATE[name]) for name in STATE):
        return False
    try:
        identity = json.loads(state["recipe"])
    except (ValueError, RecursionError):
        return False
    return isinstance(identity, dict) and bool(state["tally"].keys() == TALLY)


def _read_object(path: Path) -> dict[str, Any] | None:
    """Return the JSON object of a file: an empty one where it holds anything else, None where there is no file."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _is_ours(line: str) -> bool:
    """Return whether a line of metrics is a run's, be it one that a crash has broken off or left as zeros."""
    line = line.strip("\0")
    return _epoch_of(line) > 0 or line[: len(LINE_BEGINS)] == LINE_BEGINS[: len(line)]


def _epoch_of(line: str) -> int:
    """Return the epoch of a line of metrics, 0 for one that a crash has broken off."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError, TypeError):
        return 0


def check_same_run(path: Path, saved: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise TrainingError if the run in the folder `path` is another one than is wanted, by their identities."""
    if saved != wanted:
        own = ""
        if not RunFolder(path).checkpoint.exists():
            pictures = ", with the pictures as they were," if saved.get("images") != wanted.get("images") else ""
            own = f"; with --finish that run's own command{pictures} makes a checkpoint of it as it is"
        raise TrainingError(f"{path} holds another run ({differences(saved, wanted)}): give another --out{own}")


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Return in words how one run's identity differs from another's."""
    named = {
        "images": "other images",
        "init_from": "another --init-from",
        "normalisation": "another mean and std",
    }
    return "; ".join(
        named.get(name, f"{name} {json.dumps(ours.get(name))}, not {json.dumps(theirs.get(name))}")
        for name in sorted({*ours, *theirs})
        if ours.get(name) != theirs.get(name)
    )
