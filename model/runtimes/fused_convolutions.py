"""The forward pass of a network whose batch norm is folded, in as few steps as its convolutions allow.

On a GPU each step is a kernel, and each kernel a pass over memory: relu(conv(x) + bias + shortcut) is one pass with
cuDNN's fused convolution, and four without it. Normalised images -> stem -> blocks -> mean -> head -> logits, as in
`model/resnet.py`, whose modules give the weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.resnet import Projection, ResNet


@dataclass(frozen=True, slots=True)
class FoldedConvolution:
    """A convolution's weight (out, in / groups, k, k), bias (out,) and options."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int

    def output_shape(self, x: Tensor) -> tuple[int, int, int, int]:
        """Return (N, out, H, W) for an input (N, in, H, W)."""
        sides = zip(x.shape[2:], self.weight.shape[2:], self.stride, self.padding, strict=True)
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side, kernel, stride, padding in sides)
        return len(x), len(self.weight), height, width


class Kernels(Protocol):
    """What computes a convolution and what follows it."""

    in_channels: int
    """The images are padded to as many channels, with zeros."""

    def conv_relu(self, conv: FoldedConvolution, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return relu(conv(x) + bias + z); `z` has the output's shape."""


class PlainKernels:
    """One operation after the other; on every device."""

    in_channels = 3

    def conv_relu(self, conv: FoldedConvolution, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return relu(conv(x) + bias + z)."""
        y = functional.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding, groups=conv.groups)
        return y.relu_() if z is None else y.add_(z).relu_()


class CudnnKernels:
    """All of it in one operation of cuDNN, for inference on CUDA, channels last."""

    # Tensor cores take eight channels of bfloat16 at a time; three might be refused, or padded anew in each layer.
    in_channels = 8

    def __init__(self) -> None:
        self._zeros: list[Tensor] = []

    def conv_relu(self, conv: FoldedConvolution, x: Tensor, z: Tensor | None = None) -> Tensor:
        """Return relu(conv(x) + bias + z). Raises RuntimeError where cuDNN has nothing for it."""
        alpha = 1.0 if z is not None else 0.0
        if z is None:
            # torch's cudnn_convolution_relu passes the output itself here, whatever it holds; 0 * NaN would be NaN.
            z = self._zeros_for(conv, x)
        return torch.cudnn_convolution_add_relu(
            x, conv.weight, z, alpha, conv.bias, conv.stride, conv.padding, (1, 1), conv.groups
        )

    def _zeros_for(self, conv: FoldedConvolution, x: Tensor) -> Tensor:
        """Return zeros in the output's shape, out of one buffer for all layers.

        Where it grows the old ones stay: captured graphs know their addresses.
        """
        count, channels, height, width = conv.output_shape(x)
        numbers = count * channels * height * width
        if not self._zeros or len(self._zeros[-1]) < numbers:
            self._zeros.append(torch.zeros(numbers, dtype=x.dtype, device=x.device))
        return self._zeros[-1][:numbers].view(count, height, width, channels).permute(0, 3, 1, 2)


class FusedNetwork:
    """The same function as `network`, whose batch norm must be folded; weights are shared where they are the same."""

    def __init__(self, network: ResNet, kernels: Kernels) -> None:
        self._kernels = kernels
        self._extra_channels = kernels.in_channels - 3
        self._pool = getattr(network.stem, "pool", None)
        self._blocks = [_Block(block) for stage in network.stages for block in stage.children()]
        stem = _convolution(network.stem.get_submodule("conv"))
        if self._extra_channels:
            weight = functional.pad(stem.weight, (0, 0, 0, 0, 0, self._extra_channels))
            stem = replace(stem, weight=weight.contiguous(memory_format=torch.channels_last))
        self._stem = stem
        # As a convolution of one pixel. cuBLAS keeps a workspace for each stream it was used on, for good, and others
        # may clear it (torch.compile does) while a captured graph still writes there; cuDNN's comes out of the graph's.
        self._head = network.head.weight.detach()[:, :, None, None], network.head.bias.detach()

    def __call__(self, images: Tensor) -> Tensor:
        """Map normalised images, (N, 3, S, S), channels last, to logits, (N, classes), in their dtype."""
        x = functional.pad(images, (0, 0, 0, 0, 0, self._extra_channels)) if self._extra_channels else images
        x = self._kernels.conv_relu(self._stem, x)
        if self._pool is not None:
            x = self._pool(x)
        for block in self._blocks:
            x = block(self._kernels, x)
        return functional.conv2d(x.mean(dim=(2, 3), keepdim=True), *self._head).flatten(1)


class _Block:
    """A residual block, a bottleneck, or either without its shortcut."""

    def __init__(self, block: nn.Module) -> None:
        names = [name for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]
        *self._first, self._last = (_convolution(getattr(block, name)) for name in names)
        self._identity = isinstance(block.shortcut, nn.Identity)
        self._projection: FoldedConvolution | None = None
        if isinstance(block.shortcut, Projection):
            self._projection = projection = _convolution(block.shortcut.conv)
            # Both biases at once, where the sum is made.
            self._last = replace(self._last, bias=self._last.bias + projection.bias)

    def __call__(self, kernels: Kernels, x: Tensor) -> Tensor:
        y = x
        for conv in self._first:
            y = kernels.conv_relu(conv, y)
        z = x if self._identity else None
        if self._projection is not None:
            z = functional.conv2d(x, self._projection.weight, stride=self._projection.stride)
        return kernels.conv_relu(self._last, y, z)


def _convolution(conv: nn.Module) -> FoldedConvolution:
    """Return what is computed with of a folded convolution."""
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    assert isinstance(conv.padding, tuple)
    return FoldedConvolution(conv.weight.detach(), conv.bias.detach(), conv.stride, conv.padding, conv.groups)
