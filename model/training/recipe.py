"""The settings of a training run as one frozen object, and the presets.

Without torch, so that the command line can show the presets without waiting for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from model.architecture import Architecture, Shortcut, Stem
from model.batch_sizes import batch_size_for
from model.transforms import MAX_SIDE, MIN_SIDE

MAX_CIFAR_STEM_PIXELS = 64


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


# The side of the images that the presets are made for, and the least images that batch norm should see at once.
NATIVE_SIZE = 32
SMALLEST_BATCH = 8

# What convolutions put out is what a step keeps for its gradients. Those of ResNet-18 with the stem of ImageNet put out
# about as much as with that of CIFAR at a third of the side: 0.8 instead of 9.4 times 64 values a pixel of the image.
IMAGENET_STEM_REDUCES = 3

# Beyond it a number can only be a slip.
MAX_EPOCHS = 1_000_000

# Of the runs that a checkpoint came from, so many are kept in its metadata.
MAX_EARLIER_RUNS = 20

Phases = tuple[tuple[int, int], ...]


def parse_phases(text: str) -> Phases:
    """Parse "16:10,32:2" into ((16, 10), (32, 2)): ten epochs at 16x16, then two at 32x32. Raises ValueError."""
    limits = f"sizes from {MIN_SIDE} to {MAX_SIDE}, epochs from 1 to {MAX_EPOCHS}"
    try:
        phases = tuple((int(size), int(epochs)) for size, epochs in (part.split(":") for part in text.split(",")))
    except ValueError:
        phases = ()
    if not phases or not all(MIN_SIDE <= size <= MAX_SIDE and 1 <= epochs <= MAX_EPOCHS for size, epochs in phases):
        raise ValueError(f"expected SIZE:EPOCHS[,SIZE:EPOCHS...], such as 16:10,32:2, {limits}, not {text!r}")
    return phases


@dataclass(frozen=True)
class Recipe(Augmentation):
    """How to train what, and how its images change. `warmup` is a share of all steps.

    `phases` are (image size in pixels, epochs). Images that grow from phase to phase: fast.ai's entry to DAWNBench 2018
    (progressive resizing), and Tan and Le 2021, "EfficientNetV2", arXiv:2104.00298.

    `arch` to `shortcut` are the network's, see model.architecture.Architecture; `stem` "auto" is chosen by the image
    size. `keep_initial` is the share of the weights it started from in the final ones, see model.training.interpolate.
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
    cutout: int = 8
    keep_initial: float = 0.0
    hold_out: int = 5000
    seed: int = 0

    @property
    def epochs(self) -> int:
        """The number of epochs of all phases together."""
        return sum(epochs for _, epochs in self.phases)

    def steps_per_epoch(self, images: int) -> int:
        """Return how many whole batches so many training images make; the rest of an epoch's order is left out."""
        return images // self.batch_size

    def size_of(self, epoch: int) -> int:
        """Return the image size in pixels at an epoch, counted from 0."""
        for size, epochs in self.phases:
            if epoch < epochs:
                return size
            epoch -= epochs
        return self.phases[-1][0]

    def architecture(self, num_classes: int, size: int) -> Architecture:
        """Return the network to train on images of `size` pixels: the "auto" stem keeps small ones' resolution."""
        small = size <= MAX_CIFAR_STEM_PIXELS
        stem: Stem = ("cifar" if small else "imagenet") if self.stem == "auto" else self.stem
        return Architecture(self.arch, num_classes, stem, self.groups, self.width_per_group, self.shortcut)

    def for_data(self, size: int, images: int, classes: int, given: Mapping[str, Any], *, processes: int = 1) -> Recipe:
        """Return the recipe for `images` training images of size x size pixels; the presets are made for CIFAR-10.

        Lengths in pixels grow with the images. A tenth is held out at most, but one image of each class if that is
        no more than a quarter. A batch is an eighth of what is left at most, or SMALLEST_BATCH; of large images it is
        smaller, so that it takes no more memory than the preset's of 64 x 64 pixels, but SMALLEST_BATCH at least; and
        `processes` can share it equally, or have one image each. The learning rate shrinks with a smaller batch, also
        with one that is given (Goyal et al. 2017, arXiv:1706.02677). `given` are fields that are taken as they are.
        """
        scale = size / NATIVE_SIZE
        scaled: dict[str, Any] = {
            "phases": tuple((_scaled_side(side, size), epochs) for side, epochs in self.phases),
            "crop_padding": round(self.crop_padding * scale),
            "cutout": round(self.cutout * scale),
            "hold_out": min(self.hold_out, max(1, images // 10, min(classes, images // 4)), max(0, images - classes)),
        }
        recipe = replace(self, **(scaled | dict(given)))
        training = max(1, images - recipe.hold_out)
        if "batch_size" not in given:
            batch_size = min(recipe._batch_that_fits(size), training, max(SMALLEST_BATCH, _power_of_two(training // 8)))
            recipe = replace(recipe, batch_size=max(1, batch_size // processes) * processes)
        if "learning_rate" not in given and recipe.batch_size < self.batch_size:
            recipe = replace(recipe, learning_rate=self.learning_rate * recipe.batch_size / self.batch_size)
        return recipe

    def _batch_that_fits(self, size: int) -> int:
        """Return the batch, or the power of two below it that the largest images leave memory for."""
        largest = max(side for side, _ in self.phases)
        if self.architecture(1, size).stem == "imagenet":
            largest = largest // IMAGENET_STEM_REDUCES
        fits = batch_size_for(largest, self.batch_size, least=SMALLEST_BATCH)
        return self.batch_size if fits >= self.batch_size else _power_of_two(fits)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return {**asdict(self), "phases": [list(phase) for phase in self.phases]}


def earlier_runs(recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the runs that came before a checkpoint's `recipe`, the last one first: of each its version and recipe.

    Reads the list under "init_from", and the older form, in which each recipe holds the one before it.
    """
    runs: list[dict[str, Any]] = []
    start = recipe.get("init_from")
    while isinstance(start, dict) and isinstance(before := start.get("recipe"), dict):
        runs.append({**start, "recipe": {name: value for name, value in before.items() if name != "init_from"}})
        start = before.get("init_from")
    return runs + (start if isinstance(start, list) else [])


def lineage(version: str, recipe: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a run from the checkpoint `version`, made by `recipe`, notes as "init_from": the last one first.

    It is a flat list of the last MAX_EARLIER_RUNS: one within the other would be too deep to write some day.
    """
    return earlier_runs({"init_from": {"version": version, "recipe": recipe}})[:MAX_EARLIER_RUNS]


def _scaled_side(side: int, size: int) -> int:
    """Scale a phase's side from the presets' images to those of `size` pixels: in steps of 4, the full size exact."""
    return size if side == NATIVE_SIZE else min(size, max(8, 4 * round(side * size / NATIVE_SIZE / 4)))


def _power_of_two(limit: int) -> int:
    """Return the largest power of two up to `limit`, and 1 below that."""
    return 1 << max(0, limit.bit_length() - 1)


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
