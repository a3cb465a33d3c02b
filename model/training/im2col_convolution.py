"""Convolutions that learn faster on a CPU: where a picture has become small, the weights' gradient as one product.

oneDNN's own way to that gradient goes through the pictures one by one and takes as long for 2 x 2 pixels as for 4 x 4:
for 512 channels and 128 pictures 35 to 45 ms with AMX. The product of the output's gradient with the patches that the
kernel saw takes 3 to 13 there, and with AVX-512 or in float32 no longer than oneDNN. On larger pictures the copies of
the patches cost more than they save. Convolution as a product over patches ("im2col"): Chellapilla et al. 2006, "High
Performance Convolutional Neural Networks for Document Processing".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

MAX_PIXELS = 16


class Im2colConv2d(nn.Conv2d):
    """A convolution in one group and without a bias, the same function as nn.Conv2d and with the same gradients."""

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Im2colConv2d:
        """Return one in place of `conv`, whose weight it takes over."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            (conv.kernel_size[0], conv.kernel_size[1]),
            stride=conv.stride[0],
            padding=int(conv.padding[0]),
            bias=False,
            device="meta",
        )
        layer.weight = conv.weight
        return layer.train(conv.training)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in, H, W) to (N, out, H', W')."""
        stride, padding, kernel = self.stride[0], int(self.padding[0]), self.kernel_size[0]
        height, width = ((side + 2 * padding - kernel) // stride + 1 for side in x.shape[2:])
        if height * width > MAX_PIXELS or not torch.is_grad_enabled():
            return super().forward(x)
        if torch.is_autocast_enabled(x.device.type):
            # Inside of _Convolution autocast does nothing; these casts lead the gradients back to float32.
            dtype = torch.get_autocast_dtype(x.device.type)
            return _convolve(x.to(dtype), self.weight.to(dtype), stride, padding)
        return _convolve(x, self.weight, stride, padding)


class _Convolution(torch.autograd.Function):
    """conv2d in one group, with the gradient of the weight by patches."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, stride=stride, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        x, weight = ctx.saved_tensors
        of_input = of_weight = None
        if ctx.needs_input_grad[0]:
            # Neither transposed nor in groups; and of the gradients of input, weight and bias, the first alone.
            sizes = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1]
            options = None, *sizes, False, [0, 0], 1, [True, False, False]
            of_input = torch.ops.aten.convolution_backward(gradient, x, weight, *options)[0]
        if ctx.needs_input_grad[1]:
            of_weight = _weight_gradient(gradient, x, weight.shape, ctx.stride, ctx.padding)
        return of_input, of_weight, None, None


def _convolve(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    y: Tensor = _Convolution.apply(x, weight, stride, padding)
    return y


def _weight_gradient(gradient: Tensor, x: Tensor, shape: torch.Size, stride: int, padding: int) -> Tensor:
    """Return the gradient of a weight (out, in, k, k), given that of the output, (N, out, H', W'), and the input."""
    out, channels, kernel, _ = shape
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))
    windows = padded.unfold(1, kernel, stride).unfold(2, kernel, stride)  # (N, H', W', in, k, k)
    patches = windows.permute(0, 1, 2, 4, 5, 3).reshape(-1, kernel * kernel * channels)
    product = gradient.permute(0, 2, 3, 1).reshape(-1, out).t() @ patches
    return product.view(out, kernel, kernel, channels).permute(0, 3, 1, 2)


def use_im2col_convolutions(network: nn.Module) -> None:
    """Put an Im2colConv2d in place of every convolution that can be one; parameters and their names stay."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Conv2d and _can_be_one(child):
                setattr(module, name, Im2colConv2d.like(child))


def _can_be_one(conv: nn.Conv2d) -> bool:
    sizes = conv.kernel_size, conv.stride, conv.padding
    square = all(isinstance(pair, tuple) and len(set(pair)) == 1 for pair in sizes)
    plain = conv.groups == 1 and conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    return square and plain and conv.bias is None
