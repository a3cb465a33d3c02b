"""Which network a checkpoint belongs to: its options, and every layer and tensor that follow from them.

Nothing here needs torch: model/resnet.py builds the layers in it, the graphs in model/runtimes/ do without it.

Sources: He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv:1512.03385; the stride of a
bottleneck sits on its 3x3 convolution, as in torchvision ("ResNet v1.5"); the stem for small images (3x3,
stride 1, no pooling) is the one commonly used on CIFAR with these four-stage networks. ResNet-20 and -56 are the
three narrow stages of the paper's section 4.2, with a projection where the paper pads with zeros (option A).
Grouped bottlenecks: Xie et al. 2016, "Aggregated Residual Transformations", arXiv:1611.05431 (ResNeXt).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from model.resnet import ResNet

Stem = Literal["cifar", "imagenet"]
Shortcut = Literal["identity", "none"]
BlockKind = Literal["basic", "bottleneck"]
Shapes = dict[str, tuple[int, ...]]

STAGE_WIDTHS = (64, 128, 256, 512)
NARROW_STAGE_WIDTHS = (16, 32, 64)

# A block's output channels over its width.
EXPANSION: dict[BlockKind, int] = {"basic": 1, "bottleneck": 4}

# The widest that anybody has published is 1536 (ResNeXt-101 32x48d); metadata of unknown origin may not ask for more
# than the next power of two.
MAX_GROUPED_WIDTH = 2048

# Blocks a stage: four stages are STAGE_WIDTHS wide, three are NARROW_STAGE_WIDTHS wide.
ARCHITECTURES: dict[str, tuple[BlockKind, tuple[int, ...]]] = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
    "resnet20": ("basic", (3, 3, 3)),
    "resnet56": ("basic", (9, 9, 9)),
}


@dataclass(frozen=True, slots=True)
class ConvSpec:
    """A square convolution without a bias, and the batch norm behind it; at stride 1 an image keeps its size.

    `name` and `norm` are what the tensors of the two begin with.
    """

    name: str
    norm: str
    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        """Pixels of zeros on each side."""
        return self.kernel // 2

    @property
    def shapes(self) -> Shapes:
        """The tensors of both, by name."""
        weight = (self.out_channels, self.in_channels // self.groups, self.kernel, self.kernel)
        statistics = ("weight", "bias", "running_mean", "running_var")
        return {f"{self.name}.weight": weight} | {f"{self.norm}.{each}": (self.out_channels,) for each in statistics}


def bottleneck_width(width: int, groups: int, width_per_group: int) -> int:
    """Return the channels of a bottleneck's 3x3 convolution, as in torchvision."""
    return int(width * width_per_group / 64) * groups


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """A residual block: a basic one of two convolutions, or a bottleneck of three; model/resnet.py explains them."""

    name: str
    kind: BlockKind
    in_channels: int
    width: int
    stride: int = 1
    groups: int = 1
    width_per_group: int = 64
    shortcut: Shortcut = "identity"

    @property
    def out_channels(self) -> int:
        """Channels of what comes out."""
        return self.width * EXPANSION[self.kind]

    @property
    def layers(self) -> tuple[ConvSpec, ...]:
        """The convolutions, in order; there is a ReLU between two of them."""
        if self.kind == "basic":
            return (
                self._convolution(1, self.in_channels, self.width, 3, stride=self.stride),
                self._convolution(2, self.width, self.width, 3),
            )
        inner = bottleneck_width(self.width, self.groups, self.width_per_group)
        return (
            self._convolution(1, self.in_channels, inner, 1),
            self._convolution(2, inner, inner, 3, stride=self.stride, groups=self.groups),
            self._convolution(3, inner, self.out_channels, 1),
        )

    @property
    def projection(self) -> ConvSpec | None:
        """What brings the shortcut to the output's shape where stride or width changes (option B of the paper)."""
        same = self.stride == 1 and self.in_channels == self.out_channels
        if self.shortcut == "none" or same:
            return None
        path = f"{self.name}.shortcut"
        return ConvSpec(
            name=f"{path}.conv",
            norm=f"{path}.norm",
            in_channels=self.in_channels,
            out_channels=self.out_channels,
            kernel=1,
            stride=self.stride,
        )

    def _convolution(
        self, number: int, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> ConvSpec:
        return ConvSpec(
            name=f"{self.name}.conv{number}",
            norm=f"{self.name}.norm{number}",
            in_channels=in_channels,
            out_channels=out_channels,
            kernel=kernel,
            stride=stride,
            groups=groups,
        )


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """All layers of a network: stem, stages of blocks, mean over space, and a linear head of `features` inputs.

    `pool` is whether the stem ends with 3x3 maximum pooling of stride 2.
    """

    stem: ConvSpec
    pool: bool
    stages: tuple[tuple[BlockSpec, ...], ...]
    features: int
    num_classes: int

    @property
    def convolutions(self) -> list[ConvSpec]:
        """Every convolution: the stem's, then block by block, a projection last."""
        blocks = [block for stage in self.stages for block in stage]
        every = [layer for block in blocks for layer in (*block.layers, block.projection)]
        return [self.stem, *(layer for layer in every if layer is not None)]

    @property
    def shapes(self) -> Shapes:
        """The tensors that a checkpoint holds, by name."""
        shapes: Shapes = {}
        for layer in self.convolutions:
            shapes |= layer.shapes
        return shapes | {"head.weight": (self.num_classes, self.features), "head.bias": (self.num_classes,)}


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

    def network_spec(self) -> NetworkSpec:
        """Return the layers. Raises ValueError for whatever cannot be built."""
        self._validate()
        kind, depths = ARCHITECTURES[self.arch]
        widths = STAGE_WIDTHS if len(depths) == len(STAGE_WIDTHS) else NARROW_STAGE_WIDTHS
        channels = widths[0]
        kernel, stride = (3, 1) if self.stem == "cifar" else (7, 2)
        stem = ConvSpec(
            name="stem.conv", norm="stem.norm", in_channels=3, out_channels=channels, kernel=kernel, stride=stride
        )
        stages = []
        for s, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks: list[BlockSpec] = []
            for b in range(depth):
                block = BlockSpec(
                    name=f"stages.{s}.{b}",
                    kind=kind,
                    in_channels=channels,
                    width=width,
                    stride=2 if s > 0 and b == 0 else 1,
                    groups=self.groups,
                    width_per_group=self.width_per_group,
                    shortcut=self.shortcut,
                )
                blocks.append(block)
                channels = block.out_channels
            stages.append(tuple(blocks))
        return NetworkSpec(
            stem=stem,
            pool=self.stem == "imagenet",
            stages=tuple(stages),
            features=channels,
            num_classes=self.num_classes,
        )

    def build(self) -> ResNet:
        """Build the network in torch with fresh weights. Raises ValueError for whatever cannot be built."""
        from model.resnet import ResNet

        return ResNet(self.network_spec())

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return asdict(self)

    def _validate(self) -> None:
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
        if sizes != (1, 64) and ARCHITECTURES[self.arch][0] != "bottleneck":
            raise ValueError("groups and width_per_group are for bottleneck blocks: resnet50, resnet101, resnet152")
        if self.stem not in ("cifar", "imagenet"):
            raise ValueError(f"unknown stem {self.stem!r}: choose 'cifar' or 'imagenet'")
        if self.shortcut not in ("identity", "none"):
            raise ValueError(f"unknown shortcut {self.shortcut!r}: choose 'identity' or 'none'")
