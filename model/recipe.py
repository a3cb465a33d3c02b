"""The settings of a training run as one frozen object, and the presets.

Without torch, so that the command line can show the presets without waiting for it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from model.resnet import Architecture, Shortcut, Stem

LARGEST_CIFAR_STEM_PIXELS = 64


@dataclass(frozen=True)
class Augmentation:
    """The random changes of training images: lengths in pixels at the data's own resolution, shares of one.

    `jpeg` is the share saved as JPEG at a random quality, `greyscale` the share without colours, `rescale` the share
    enlarged and brought back.
    """

    crop_padding: int = 4
    flip: bool = True
    alternating_flip: bool = False
    cutout: int = 0
    cutmix: float = 0.0
    jpeg: float = 0.0
    greyscale: float = 0.0
    rescale: float = 0.0


Phases = tuple[tuple[int, int], ...]


def parse_phases(text: str) -> Phases:
    """Parse "16:10,32:2" into ((16, 10), (32, 2)): ten epochs at 16x16, then two at 32x32. Raises ValueError."""
    try:
        phases = tuple((int(size), int(epochs)) for size, epochs in (part.split(":") for part in text.split(",")))
    except ValueError:
        phases = ()
    if not phases or any(size < 8 or epochs < 1 for size, epochs in phases):
        raise ValueError(f"phases {text!r}: expected SIZE:EPOCHS[,SIZE:EPOCHS...], such as 16:10,32:2")
    return phases


@dataclass(frozen=True)
class Recipe:
    """How to train what. `phases` are (image size in pixels, epochs); `warmup` is a share of all steps.

    `arch` to `shortcut` are the network's, see model.resnet.Architecture; `stem` "auto" is chosen by the image size.
    """

    arch: str = "resnet18"
    stem: Stem | Literal["auto"] = "auto"
    groups: int = 1
    width_per_group: int = 64
    shortcut: Shortcut = "identity"
    phases: Phases = ((32, 100),)
    batch_size: int = 512
    learning_rate: float = 0.4
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.2
    label_smoothing: float = 0.1
    ema_decay: float = 0.998
    crop_padding: int = 4
    flip: bool = True
    alternating_flip: bool = False
    cutout: int = 8
    cutmix: float = 0.0
    jpeg: float = 0.0
    greyscale: float = 0.0
    rescale: float = 0.0
    hold_out: int = 5000
    seed: int = 0

    @property
    def epochs(self) -> int:
        """The number of epochs of all phases together."""
        return sum(epochs for _, epochs in self.phases)

    def size_of(self, epoch: int) -> int:
        """Return the image size in pixels at an epoch, counted from 0."""
        for size, epochs in self.phases:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.phases[-1][0]

    def architecture(self, num_classes: int, size: int) -> Architecture:
        """Return the network to train on images of `size` pixels: the "auto" stem keeps small ones' resolution."""
        from model.resnet import Architecture  # it imports torch, which takes a second

        small = size <= LARGEST_CIFAR_STEM_PIXELS
        stem: Stem = ("cifar" if small else "imagenet") if self.stem == "auto" else self.stem
        return Architecture(self.arch, num_classes, stem, self.groups, self.width_per_group, self.shortcut)

    def augmentation(self) -> Augmentation:
        """Return the part of the recipe that changes training images."""
        return Augmentation(**{field.name: getattr(self, field.name) for field in fields(Augmentation)})

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return {**asdict(self), "phases": [list(phase) for phase in self.phases]}


PRESETS: dict[str, Recipe] = {
    # For a GPU, from the shortest to the best; meant for 94, 96 and 96.5 %.
    "fast": replace(
        Recipe(), phases=((24, 6), (32, 10)), alternating_flip=True, crop_padding=2, cutout=0, ema_decay=0.995
    ),
    "standard": replace(Recipe(), phases=((32, 80),), alternating_flip=True, cutout=12),
    "best": replace(Recipe(), phases=((32, 200),), alternating_flip=True, cutout=0, cutmix=0.5, label_smoothing=0.05),
    # For a CPU without a GPU beside it: most epochs at a quarter of the cost, small batches, no cutout, which
    # only pays over many epochs.
    "cpu": replace(
        Recipe(), phases=((16, 7), (24, 1), (32, 2)), batch_size=128, learning_rate=0.1, cutout=0, ema_decay=0.995
    ),
    # A second, lower cycle for a network of the first (--init-from), with milder crops: it is still underfitted.
    "cpu-finish": replace(
        Recipe(),
        phases=((24, 1), (32, 1)),
        batch_size=128,
        learning_rate=0.04,
        warmup=0.15,
        crop_padding=2,
        cutout=0,
        ema_decay=0.995,
    ),
}
