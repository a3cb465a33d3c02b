"""A preset fitted to what is trained on and to what was given on the command line."""

from __future__ import annotations

import argparse
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from model.architecture import Architecture
from model.training.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint
    from model.data import Dataset

log = logging.getLogger(__name__)

FEW_STEPS = 1000  # CIFAR-10's shortest recipe, for a CPU, has 3,510
FEW_STEPS_OF_A_HEAD = 300  # where all other weights have learnt something already
FEW_HELD_OUT = 100  # of fewer, a temperature says more of the pictures than of the network


def check_flags(
    arguments: argparse.Namespace, default_preset: str, init_from: Checkpoint | None, processes: int
) -> None:
    """Raise TrainingError for what the flags alone show to be impossible: to read all pictures may take minutes."""
    from model.training.checks import check_recipe, check_same_network

    given, size = _given(arguments), arguments.image_size
    recipe = replace(PRESETS[arguments.preset or default_preset], **({"cutout": 0} | given))
    if init_from is not None:
        theirs = Architecture.from_dict(init_from.metadata.architecture)
        own = asdict(theirs) | {name: value for name, value in given.items() if name in asdict(theirs)}
        recipe = replace(recipe, **{name: value for name, value in own.items() if name != "num_classes"})
        check_same_network(recipe.architecture(theirs.num_classes, size), theirs, str(init_from.path))
    check_recipe(
        recipe,
        size,
        temperature=arguments.temperature,
        has_initial=init_from is not None,
        processes=processes if "batch_size" in given else 1,  # else the pictures may have a say in it
    )


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a recipe that were given on the command line."""
    given = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name in Recipe.__dataclass_fields__
    }
    return given if arguments.epochs is None else given | {"phases": ((arguments.image_size, arguments.epochs),)}


def build_recipe(
    arguments: argparse.Namespace, default_preset: str, dataset: Dataset, init_from: Checkpoint | None = None
) -> Recipe:
    """Fit the preset to the training set; what was given on the command line stays as it was given.

    The network is the one of `init_from`, as far as the command line does not say otherwise. Raises DataError if more
    is to be held out than there is.
    """
    from model.data import check_hold_out

    given = _given(arguments)
    if "hold_out" in given:
        check_hold_out(dataset, given["hold_out"])  # before a recipe is told of that nothing can be trained by
    preset = PRESETS[arguments.preset or default_preset]
    recipe = preset.for_data(arguments.image_size, len(dataset), len(dataset.classes), given)
    for name in Recipe.__dataclass_fields__:
        if name not in given and getattr(recipe, name) != getattr(preset, name):
            why = "the batch" if name == "learning_rate" else "the training set"
            log.info("%s %s instead of %s, to suit %s", name, getattr(recipe, name), getattr(preset, name), why)
    if init_from is not None:
        recipe = replace(recipe, **_network_of(init_from, recipe, dataset, given))
    _tell_of_steps(recipe, len(dataset) - recipe.hold_out, _what_is_fresh(dataset, init_from))
    if arguments.temperature is None and 0 < recipe.hold_out < FEW_HELD_OUT:
        note = "how sure its answers are will mean little; more pictures or a larger --hold-out help"
        log.warning("the calibration is fitted on %d held-out pictures: %s", recipe.hold_out, note)
    last_size, served_size = recipe.phases[-1][0], dataset.images.shape[-1]
    if last_size != served_size:
        log.warning(
            "the last phase is of %d pixels, but %d are what the network is measured on and served",
            last_size,
            served_size,
        )
    return recipe


def _network_of(init_from: Checkpoint, recipe: Recipe, dataset: Dataset, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the weights' network that nobody gave and the recipe has otherwise, and tell of them.

    What fits already stays as the recipe has it: a run's state names the recipe that it goes on with.
    """
    own = asdict(recipe.architecture(len(dataset.classes), dataset.images.shape[-1]))
    theirs = asdict(Architecture.from_dict(init_from.metadata.architecture))
    taken = {
        name: value
        for name, value in theirs.items()
        if name != "num_classes" and name not in given and value != own[name]
    }
    for name, value in taken.items():
        log.info("%s %s, as the weights of --init-from have it", name, value)
    return taken


def _what_is_fresh(dataset: Dataset, init_from: Checkpoint | None) -> str:
    """Return what of the network has learnt nothing yet: its "weights", its "head", or "" for nothing."""
    if init_from is None:
        return "weights"
    return "" if init_from.metadata.classes == dataset.classes else "head"


def _tell_of_steps(recipe: Recipe, images: int, fresh: str) -> None:
    """Say how long the run will be, and whether that is little for what is `fresh`: "weights", a "head", or nothing."""
    of_an_epoch = recipe.steps_per_epoch(images)
    steps = recipe.epochs * of_an_epoch
    log.info("%d steps in %d epochs", steps, recipe.epochs)
    if fresh == "weights" and steps < FEW_STEPS:
        log.warning("%d steps are few for fresh weights: give --init-from, or more --epochs", steps)
    elif fresh == "head" and 0 < steps < FEW_STEPS_OF_A_HEAD:
        enough = -(-FEW_STEPS_OF_A_HEAD // of_an_epoch)
        log.warning("%d steps are few for a fresh head: give more --epochs, such as %d", steps, enough)
