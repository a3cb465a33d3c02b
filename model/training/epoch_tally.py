"""What has been done of an epoch, by one process and by all of them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.training.distributed import World


@dataclass
class EpochTally:
    """Sums over the steps of the present epoch, of this process, and its seconds.

    `loss_sum` of each step's mean loss, `correct` of images: float32 scalars on the device, which is not waited for.
    """

    loss_sum: Tensor
    correct: Tensor
    steps: int = 0
    seconds: float = 0.0

    @classmethod
    def empty(cls, device: torch.device) -> EpochTally:
        """Return the tally of an epoch that has not begun."""
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss: Tensor, correct: Tensor) -> None:
        """Count a step."""
        self.loss_sum += loss
        self.correct += correct
        self.steps += 1

    def mean_loss(self, world: World) -> float:
        """Return the mean over all steps and processes; all of them call it."""
        return float(world.all_reduce_sum_(self.loss_sum.clone())) / (self.steps * world.size)

    def correct_of_all(self, world: World) -> float:
        """Return the sum over all processes; all of them call it."""
        return float(world.all_reduce_sum_(self.correct.clone()))

    def state_dict(self, world: World) -> dict[str, Any]:
        """Return what to go on from, of all processes: next time there may be more or fewer. All of them call it."""
        return {
            "loss_sum": world.all_reduce_sum_(self.loss_sum.clone()) / world.size,  # of whole batches' mean losses
            "correct": world.all_reduce_sum_(self.correct.clone()),
            "steps": self.steps,
            "seconds": self.seconds,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], world: World) -> EpochTally:
        """Return this process' part of what `state_dict` returned."""
        tally = cls(**state)
        tally.correct /= world.size
        return tally
