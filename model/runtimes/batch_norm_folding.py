"""Batch norm folded into the convolution before it: the same function with fewer passes over memory."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold, in place, every `norm<i>` into its `conv<i>` neighbour and return the network, which must be in eval mode.

    The answers stay the same up to float rounding: conv(x) * g + b is one convolution with weights scaled by g.
    """
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if name.startswith("conv") and isinstance(child, nn.Conv2d):
                norm_name = name.replace("conv", "norm")
                norm = getattr(module, norm_name)
                setattr(module, name, fuse_conv_bn_eval(child, norm))
                setattr(module, norm_name, nn.Identity())
    return network
