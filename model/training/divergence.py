"""A loss or weights that are no numbers any more: nothing of them is saved, and the run ends."""

from __future__ import annotations

import math

from model.training.distributed import World
from model.training.errors import TrainingError
from model.training.learner import Learner
from model.training.run_folder import RunFolder


def check_loss(loss: float, epoch: int, folder: RunFolder) -> None:
    """Raise TrainingError if the loss in `epoch`, counted from 1, the same in all processes, is no number."""
    if not math.isfinite(loss):
        raise TrainingError(f"the loss is {loss} in epoch {epoch}: {_way_out(folder)}")


def check_weights(learner: Learner, epoch: int, folder: RunFolder, world: World) -> None:
    """Raise TrainingError in all processes if the weights of one are no numbers, or none that can be stored."""
    if world.any(not learner.is_finite(), learner.device):
        raise TrainingError(f"the weights have grown beyond all numbers in epoch {epoch}: {_way_out(folder)}")


def _way_out(folder: RunFolder) -> str:
    """Say what is kept of a run that came to nothing, and what to do: its folder takes no other recipe."""
    if folder.state.exists():
        return (
            f"the last good state is kept in {folder.path}, and with --finish the same command makes a checkpoint of "
            "it; try a lower --learning-rate, and another --out"
        )
    return "no state was saved yet; try a lower --learning-rate"
