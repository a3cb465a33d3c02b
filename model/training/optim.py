"""How the weights move: parameter groups, the learning-rate schedule, and the moving average of the weights."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split parameters so that weight decay acts on convolution and linear weights, not on biases and batch norm.

    He et al. 2019, "Bag of Tricks for Image Classification with Convolutional Neural Networks", arXiv:1812.01187.
    """
    decayed = [p for p in network.parameters() if p.requires_grad and p.ndim > 1]
    free = [p for p in network.parameters() if p.requires_grad and p.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]


def one_cycle(step: int, steps: int, warmup: float, peak: float) -> float:
    """Return the learning rate of a step: linear up to `peak` over a share `warmup` of all steps, then linear to zero.

    Smith and Topin 2017, "Super-Convergence", arXiv:1708.07120; the straight descent as in hlb-CIFAR10
    (https://github.com/tysam-code/hlb-CIFAR10) and airbench (Jordan 2024, arXiv:2404.00498).
    """
    done = (step + 0.5) / steps
    if done < warmup:
        return peak * done / warmup
    return peak * (1 - done) / (1 - warmup)


class MovingAverage:
    """Exponential moving average of a network's weights and batch-norm statistics.

    Tarvainen and Valpola 2017, "Mean teachers are better role models", arXiv:1703.01780. The decay grows with the
    number of updates, min(decay, (1 + n) / (10 + n)), so that early steps are forgotten, as in TensorFlow's
    ExponentialMovingAverage.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average towards `network`'s present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averaged: list[Tensor] = []
        current: list[Tensor] = []
        for mean, value in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if mean.is_floating_point():
                averaged.append(mean)
                current.append(value)
            else:
                mean.copy_(value)
        torch._foreach_lerp_(averaged, current, 1 - decay)
