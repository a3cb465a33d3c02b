"""A fine-tuned network averaged with the one it started from: what both know, and what neither has only overfitted.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv:2109.01903 (WiSE-FT). The statistics of batch norm
belong to the weights that they were taken with, so that those of the average are taken anew, as in Izmailov et al.
2018, "Averaging Weights Leads to Wider Optima and Better Generalization", arXiv:1803.05407.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.batch_sizes import batch_size_for
from model.training.recipe import SMALLEST_BATCH
from model.transforms import Triple, normalise

STATISTICS_IMAGES = 10_000
STATISTICS_BATCH = 250


@torch.no_grad()
def interpolate(network: nn.Module, initial: dict[str, Tensor], share: float) -> None:
    """Replace each tensor of `network`, in place, by (1 - share) of itself and `share` of the initial one."""
    for name, tensor in network.state_dict().items():
        if name in initial:
            tensor.lerp_(initial[name].to(tensor.device, tensor.dtype), share)


@torch.no_grad()
def reestimate_batch_norm(network: nn.Module, images: Tensor, mean: Triple, std: Triple) -> None:
    """Take batch norm's running statistics anew, in place, from uint8 images (N, 3, S, S): plain means over batches.

    As many images are taken at once as suit their side, and enough for statistics of a batch.
    """
    batch_size = batch_size_for(images.shape[-1], STATISTICS_BATCH, least=SMALLEST_BATCH)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    device = next(network.parameters()).device
    was_training = network.training
    network.train()
    for batch in images.tensor_split(max(1, round(len(images) / batch_size))):  # alike: each batch counts as much
        inputs = normalise(batch.to(device), torch.tensor(mean, device=device), torch.tensor(std, device=device))
        network(inputs.contiguous(memory_format=torch.channels_last))
    network.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
