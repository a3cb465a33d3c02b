"""ResNet-18, -34, -50, -101 and -152, with a stem for small or for large images.

A network is a stem, four stages of residual blocks, global average pooling and one linear layer:

    images (N, 3, S, S) -> stem -> stages[0..3] -> mean over space -> head -> logits (N, classes)

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385; the stride of a
bottleneck sits on its 3x3 convolution, as in torchvision ("ResNet v1.5"); the stem for small images (3x3,
stride 1, no pooling) is the one commonly used on CIFAR with these four-stage networks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Stem = Literal["cifar", "imagenet"]

STAGE_WIDTHS = (64, 128, 256, 512)


class Projection(nn.Module):
    """1x1 convolution and batch norm that bring a shortcut to its block's output shape."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return y


def make_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Identity where the shape stays, a projection where stride or width changes (option B of the paper)."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return Projection(in_channels, out_channels, stride)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity: relu(F(x) + shortcut(x))."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(in_channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1 down to `width`, 3x3, 1x1 up to four times `width`, around an identity."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: Tensor = self.relu(y + self.shortcut(x))
        return out


Block = type[ResidualBlock] | type[Bottleneck]

ARCHITECTURES: dict[str, tuple[Block, tuple[int, int, int, int]]] = {
    "resnet18": (ResidualBlock, (2, 2, 2, 2)),
    "resnet34": (ResidualBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
}


def make_stem(kind: Stem) -> nn.Sequential:
    """Build the layers before the first stage; both kinds end with 64 channels.

    "cifar" keeps the resolution, "imagenet" divides it by four.
    """
    layers: list[tuple[str, nn.Module]]
    if kind == "cifar":
        layers = [("conv", nn.Conv2d(3, 64, 3, padding=1, bias=False))]
    elif kind == "imagenet":
        layers = [("conv", nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False))]
    else:
        raise ValueError(f"unknown stem {kind!r}: choose 'cifar' or 'imagenet'")
    layers += [("norm", nn.BatchNorm2d(64)), ("relu", nn.ReLU(inplace=True))]
    if kind == "imagenet":
        layers += [("pool", nn.MaxPool2d(3, stride=2, padding=1))]
    stem = nn.Sequential()
    for name, layer in layers:
        stem.add_module(name, layer)
    return stem


class ResNet(nn.Module):
    """A stem, four stages, global average pooling and a linear head."""

    def __init__(self, block: Block, depths: Sequence[int], num_classes: int = 10, stem: Stem = "cifar") -> None:
        super().__init__()
        self.stem = make_stem(stem)
        stages = []
        channels = 64
        for stage, (width, depth) in enumerate(zip(STAGE_WIDTHS, depths, strict=True)):
            blocks: list[nn.Module] = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(block(channels, width, stride))
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation (He et al. 2015, arXiv:1502.01852), fan-out mode; batch norm starts as the identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float (N, 3, S, S), to logits, float (N, num_classes)."""
        features = self.stages(self.stem(images))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network again; stored in a checkpoint's metadata."""

    arch: str = "resnet18"
    num_classes: int = 10
    stem: Stem = "cifar"

    def build(self) -> ResNet:
        """Build the network with fresh weights. Raises ValueError for an unknown name, stem or class count."""
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.arch!r}: choose one of {', '.join(ARCHITECTURES)}")
        if self.num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, not {self.num_classes}")
        block, depths = ARCHITECTURES[self.arch]
        return ResNet(block, depths, num_classes=self.num_classes, stem=self.stem)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return asdict(self)


def resnet18(num_classes: int = 10, stem: Stem = "cifar") -> ResNet:
    """Build ResNet-18: 11.17 M parameters and 0.56 GMAC with ten classes and the CIFAR stem at 32x32."""
    return Architecture("resnet18", num_classes, stem).build()


def resnet34(num_classes: int = 10, stem: Stem = "cifar") -> ResNet:
    """Build ResNet-34."""
    return Architecture("resnet34", num_classes, stem).build()


def resnet50(num_classes: int = 10, stem: Stem = "cifar") -> ResNet:
    """Build ResNet-50."""
    return Architecture("resnet50", num_classes, stem).build()


def resnet101(num_classes: int = 10, stem: Stem = "cifar") -> ResNet:
    """Build ResNet-101."""
    return Architecture("resnet101", num_classes, stem).build()


def resnet152(num_classes: int = 10, stem: Stem = "cifar") -> ResNet:
    """Build ResNet-152."""
    return Architecture("resnet152", num_classes, stem).build()


def count_parameters(network: nn.Module) -> int:
    """Return the number of trainable values."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@torch.no_grad()
def count_macs(network: nn.Module, size: int) -> int:
    """Return multiply-accumulates of convolutions and linear layers for one image of (3, size, size)."""
    macs = 0

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        nonlocal macs
        if isinstance(module, nn.Conv2d):
            macs += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            macs += module.weight.numel()

    hooks = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    was_training = network.training
    network.eval()
    try:
        network(torch.zeros(1, 3, size, size, device=next(network.parameters()).device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    return macs
