"""The flags of `resnet train` that say what is trained and how: those of a recipe, and what goes with it.

Without torch, for a quick --help.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from app.commands.argument_types import learning_rate, seed, share, share_below_one, temperature, weight_decay, whole
from model.architecture import ARCHITECTURES
from model.training.recipe import MAX_EPOCHS, PRESETS, Phases, parse_phases
from model.transforms import MAX_SIDE


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Declare them; the preset has the values of those that are not given."""
    parser.add_argument(
        "--preset",
        choices=sorted(PRESETS),
        help="recipe to start from [a run's own; of a new one best on CUDA, else cpu]",
    )
    parser.add_argument(
        "--arch",
        choices=list(ARCHITECTURES),
        metavar="NAME",
        help=f"network: {', '.join(ARCHITECTURES)} [{_preset_values('arch')}]",
    )
    parser.add_argument(
        "--stem", choices=["auto", "cifar", "imagenet"], help="first layers; auto is cifar up to 64 pixels [auto]"
    )
    parser.add_argument("--groups", type=int, help="groups of a bottleneck's 3x3 convolution; ResNeXt has 32 [1]")
    parser.add_argument("--width-per-group", type=int, help="channels a group in the first stage [64]")
    parser.add_argument(
        "--shortcut", choices=["identity", "none"], help="none trains the plain network of the same depth [identity]"
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument(
        "--epochs", type=whole(1, MAX_EPOCHS), help="train EPOCHS epochs at full size instead of the preset's phases"
    )
    length.add_argument("--phases", type=_phases, help="SIZE:EPOCHS,... in pixels and epochs, such as 16:10,32:2")
    parser.add_argument("--batch-size", type=whole(2), help=f"images a step [{_preset_values('batch_size')}]")
    parser.add_argument(
        "--learning-rate", type=learning_rate, help=f"peak of the schedule [{_preset_values('learning_rate')}]"
    )
    parser.add_argument(
        "--weight-decay",
        type=weight_decay,
        help=f"pull of the weights towards 0, times the learning rate a step [{_preset_values('weight_decay')}]",
    )
    parser.add_argument(
        "--label-smoothing",
        type=share_below_one,
        help=f"share of each label spread evenly over all classes, 0 to below 1 [{_preset_values('label_smoothing')}]",
    )
    parser.add_argument(
        "--cutout",
        type=whole(0, MAX_SIDE),
        help=f"side of a square covered with the mean colour, pixels [{_preset_values('cutout')}]",
    )
    parser.add_argument(
        "--cutmix", type=share, help=f"share of images with a patch of another [{_preset_values('cutmix')}]"
    )
    parser.add_argument(
        "--flip",
        action=argparse.BooleanOptionalAction,
        help="mirror half of the images; not for classes that differ by it, such as letters or arrows [--flip]",
    )
    parser.add_argument("--jpeg", type=share, help=f"share of images saved as JPEG, 0 to 1 [{_preset_values('jpeg')}]")
    parser.add_argument("--greyscale", type=share, help=f"share of images made grey [{_preset_values('greyscale')}]")
    parser.add_argument("--rescale", type=share, help=f"share enlarged and brought back [{_preset_values('rescale')}]")
    parser.add_argument(
        "--hold-out",
        type=whole(0),
        help="images kept out of training, to calibrate and to compare recipes by "
        f"[a folder's val beside train and test, else {_preset_values('hold_out')}]",
    )
    parser.add_argument(
        "--temperature",
        type=temperature,
        help="divide logits by this to calibrate probabilities, instead of fitting it on the held-out images",
    )
    parser.add_argument(
        "--init-from", type=Path, help="checkpoint of this script to start from, instead of fresh weights"
    )
    parser.add_argument(
        "--keep-initial",
        type=share,
        help=f"share of the weights of --init-from in the final ones [{_preset_values('keep_initial')}]",
    )
    parser.add_argument(
        "--seed",
        type=seed,
        help=f"what fresh weights, order and augmentation are drawn from, any whole number [{_preset_values('seed')}]",
    )


def _preset_values(name: str) -> str:
    return ", ".join(f"{preset} {getattr(recipe, name)}" for preset, recipe in PRESETS.items())


def _phases(text: str) -> Phases:
    try:
        return parse_phases(text)
    except ValueError as error:  # argparse would not show its text
        raise argparse.ArgumentTypeError(str(error)) from None
