"""Every ResNet of the paper, ResNeXt and plain networks, with a stem for small or for large images, in torch.

A network is a stem, stages of residual blocks, global average pooling and one linear layer:

    images (N, 3, S, S) -> stem -> stages -> mean over space -> head -> logits (N, classes)

Which layers they have, and the sources, are in model/architecture.py.
"""

from __future__ import annotations

from torch import Tensor, nn

from model.architecture import Architecture, BlockSpec, ConvSpec, NetworkSpec, Stem


def convolution(spec: ConvSpec) -> nn.Conv2d:
    """Build a convolution: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
    return nn.Conv2d(
        spec.in_channels,
        spec.out_channels,
        spec.kernel,
        stride=spec.stride,
        padding=spec.padding,
        groups=spec.groups,
        bias=False,
    )


class Projection(nn.Module):
    """1x1 convolution and batch norm that bring a shortcut to its block's output shape."""

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.conv = convolution(spec)
        self.norm = nn.BatchNorm2d(spec.out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        y: Tensor = self.norm(self.conv(x))
        return y


def make_shortcut(spec: BlockSpec) -> nn.Module | None:
    """Build a block's shortcut: the identity where it has no projection, and nothing at all in a plain network."""
    if spec.shortcut == "none":
        return None
    return nn.Identity() if spec.projection is None else Projection(spec.projection)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity: relu(F(x) + shortcut(x)), or relu(F(x)) without a shortcut."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        first, second = spec.layers
        self.conv1 = convolution(first)
        self.norm1 = nn.BatchNorm2d(first.out_channels)
        self.conv2 = convolution(second)
        self.norm2 = nn.BatchNorm2d(second.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, width, H / stride, W / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        out: Tensor = self.relu(y if self.shortcut is None else y + self.shortcut(x))
        return out


class Bottleneck(nn.Module):
    """1x1 down, 3x3 in `groups` groups, 1x1 up to four times `width`, around an identity.

    The 3x3 convolution has `width` channels, scaled by `width_per_group` / 64 and by `groups`, as in torchvision:
    32 groups of width 4 are ResNeXt's 32x4d.
    """

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        down, middle, up = spec.layers
        self.conv1 = convolution(down)
        self.norm1 = nn.BatchNorm2d(down.out_channels)
        self.conv2 = convolution(middle)
        self.norm2 = nn.BatchNorm2d(middle.out_channels)
        self.conv3 = convolution(up)
        self.norm3 = nn.BatchNorm2d(up.out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(spec)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: Tensor = self.relu(y if self.shortcut is None else y + self.shortcut(x))
        return out


def make_block(spec: BlockSpec) -> ResidualBlock | Bottleneck:
    """Build one block."""
    return ResidualBlock(spec) if spec.kind == "basic" else Bottleneck(spec)


def make_stem(spec: ConvSpec, *, pool: bool) -> nn.Sequential:
    """Build the layers before the first stage: for small images they keep the resolution, for large ones a quarter."""
    stem = nn.Sequential()
    stem.add_module("conv", convolution(spec))
    stem.add_module("norm", nn.BatchNorm2d(spec.out_channels))
    stem.add_module("relu", nn.ReLU(inplace=True))
    if pool:
        stem.add_module("pool", nn.MaxPool2d(3, stride=2, padding=1))
    return stem


class ResNet(nn.Module):
    """A stem, stages of blocks (each after the first halves the resolution), global average pooling, a linear head."""

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.stem = make_stem(spec.stem, pool=spec.pool)
        self.stages = nn.Sequential(*(nn.Sequential(*map(make_block, blocks)) for blocks in spec.stages))
        self.head = nn.Linear(spec.features, spec.num_classes)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He initialisation (He et al. 2015, arXiv:1502.01852), fan-out mode; batch norm starts as the identity."""
        for module in self.modules():
            # On the meta device there are no numbers, and torch would load its compiler to draw none: 150 MB, for good.
            if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images, float (N, 3, S, S), to logits, float (N, num_classes)."""
        features = self.stages(self.stem(images))
        logits: Tensor = self.head(features.mean(dim=(2, 3)))
        return logits


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
