"""Every ResNet of the paper, ResNeXt and plain networks, with a stem for small or for large images.

A network is a stem, stages of residual blocks, global average pooling and one linear layer:

    images (N, 3, S, S) -> stem -> stages[0..3] -> mean over space -> head -> logits (N, classes)

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385; the stride of a
bottleneck sits on its 3x3 convolution, as in torchvision ("ResNet v1.5"); the stem for small images (3x3,
stride 1, no pooling) is the one commonly used on CIFAR with these four-stage networks. ResNet-20 and -56 are the
three narrow stages of the paper's section 4.2, with a projection where the paper pads with zeros (option A).
Grouped bottlenecks: Xie et al. 2016, "Aggregated Residual Transformations", arXiv:1611.05431 (ResNeXt).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor, nn

Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["identity", "none"]

STAGE_WIDTHS = (64, 128, 256, 512)
NARROW_STAGE_WIDTHS = (16, 32, 64)

# The widest that anybody has published is 1536 (ResNeXt-101 32x48d); metadata of unknown origin may not ask for more
# than the next power of two.
MAX_GROUPED_WIDTH = 2048


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


def make_shortcut(in_channels: int, out_channels: int, stride: int, kind: Shortcut = "identity") -> nn.Module | None:
    """Identity where the shape stays, a projection where stride or width changes (option B of the paper).

    Nothing at all for kind "none": the block of a plain network.
    """
    if kind == "none":
        return None
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return Projection(in_channels, out_channels, stride)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around an identity: relu(F(x) + shortcut(x)), or relu(F(x)) without a shortcut."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        shortcut: Shortcut = "identity",
    ) -> None:
        super().__init__()
        if (groups, width_per_group) != (1, 64):
            raise ValueError("groups and width_per_group are for bottleneck blocks: resnet50, resnet101, resnet152")
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(in_channels, width, stride, shortcut)

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

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int = 1,
        *,
        groups: int = 1,
        width_per_group: int = 64,
        shortcut: Shortcut = "identity",
    ) -> None:
        super().__init__()
        inner = int(width * width_per_group / 64) * groups
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = make_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, 4 * width, H / stride, W / stride)."""
        y = self.relu(self.norm1(self.conv1(x)))
        y = self.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        out: Tensor = self.relu(y if self.shortcut is None else y + self.shortcut(x))
        return out


Block = type[ResidualBlock] | type[Bottleneck]

# Blocks a stage: four stages are STAGE_WIDTHS wide, three are NARROW_STAGE_WIDTHS wide.
ARCHITECTURES: dict[str, tuple[Block, tuple[int, ...]]] = {
    "resnet18": (ResidualBlock, (2, 2, 2, 2)),
    "resnet34": (ResidualBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
    "resnet152": (Bottleneck, (3, 8, 36, 3)),
    "resnet20": (ResidualBlock, (3, 3, 3)),
    "resnet56": (ResidualBlock, (9, 9, 9)),
}


def make_stem(kind: Stem, channels: int) -> nn.Sequential:
    """Build the layers before the first stage; both kinds end with `channels` channels.

    "cifar" keeps the resolution, "imagenet" divides it by four.
    """
    layers: list[tuple[str, nn.Module]]
    if kind == "cifar":
        layers = [("conv", nn.Conv2d(3, channels, 3, padding=1, bias=False))]
    elif kind == "imagenet":
        layers = [("conv", nn.Conv2d(3, channels, 7, stride=2, padding=3, bias=False))]
    else:
        raise ValueError(f"unknown stem {kind!r}: choose 'cifar' or 'imagenet'")
    layers += [("norm", nn.BatchNorm2d(channels)), ("relu", nn.ReLU(inplace=True))]
    if kind == "imagenet":
        layers += [("pool", nn.MaxPool2d(3, stride=2, padding=1))]
    stem = nn.Sequential()
    for name, layer in layers:
        stem.add_module(name, layer)
    return stem


class ResNet(nn.Module):
    """A stem, stages of blocks (each after the first halves the resolution), global average pooling, a linear head."""

    def __init__(
        self,
        block: Block,
        depths: Sequence[int],
        num_classes: int = 10,
        stem: Stem = "cifar",
        *,
        groups: int = 1,
        width_per_group: int = 64,
        shortcut: Shortcut = "identity",
    ) -> None:
        super().__init__()
        widths = STAGE_WIDTHS if len(depths) == len(STAGE_WIDTHS) else NARROW_STAGE_WIDTHS
        channels = widths[0]
        self.stem = make_stem(stem, channels)
        stages = []
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[nn.Module] = []
            for i in range(depth):
                stride = 2 if stage > 0 and i == 0 else 1
                blocks.append(
                    block(channels, width, stride, groups=groups, width_per_group=width_per_group, shortcut=shortcut)
                )
                channels = width * block.expansion
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)
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


@dataclass(frozen=True)
class Architecture:
    """All that is needed to build a network again; stored in a checkpoint's metadata.

    `groups` and `width_per_group` are those of bottlenecks, as in torchvision; `shortcut` "none" leaves out identities
    and projections: the plain network of the same depth.
    """

    arch: str = "resnet18"
    num_classes: int = 10
    stem: Stem = "cifar"
    groups: int = 1
    width_per_group: int = 64
    shortcut: Shortcut = "identity"

    @classmethod
    def from_dict(cls, options: dict[str, Any]) -> Architecture:
        """Return the architecture of a checkpoint's metadata. Raises ValueError for an option that is none of ours.

        Options that an older checkpoint does not have yet keep their default, which is what it was built with.
        """
        unknown = sorted(options.keys() - cls.__dataclass_fields__.keys())
        if unknown:
            raise ValueError(f"unknown architecture options {unknown}")
        return cls(**options)

    def build(self) -> ResNet:
        """Build the network with fresh weights. Raises ValueError for whatever cannot be built."""
        if self.arch not in ARCHITECTURES:
            raise ValueError(f"unknown architecture {self.arch!r}: choose one of {', '.join(ARCHITECTURES)}")
        # The options may come out of a file from anywhere, where True and 2.0 are not far from integers.
        if type(self.num_classes) is not int or self.num_classes < 1:
            raise ValueError(f"num_classes must be an integer of at least 1, not {self.num_classes!r}")
        sizes = (self.groups, self.width_per_group)
        if any(type(size) is not int or size < 1 for size in sizes) or sizes[0] * sizes[1] > MAX_GROUPED_WIDTH:
            raise ValueError(
                f"groups and width_per_group must be integers of at least 1, their product at most {MAX_GROUPED_WIDTH}"
            )
        if self.shortcut not in ("identity", "none"):
            raise ValueError(f"unknown shortcut {self.shortcut!r}: choose 'identity' or 'none'")
        block, depths = ARCHITECTURES[self.arch]
        return ResNet(
            block,
            depths,
            num_classes=self.num_classes,
            stem=self.stem,
            groups=self.groups,
            width_per_group=self.width_per_group,
            shortcut=self.shortcut,
        )

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
