"""A preset fitted to what is trained on and to what was given on the command line."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from model.architecture import Architecture
from model.training.recipe import PRESETS, Recipe

if TYPE_CHECKING:
    import torch

    from model.checkpoint import Checkpoint
    from model.data import Dataset

log = logging.getLogger(__name__)

FEW_STEPS = 1000  # CIFAR-10's shortest recipe, for a CPU, has 3,510
FEW_STEPS_OF_A_HEAD = 300  # where all other weights have learnt something already
MANY = 1_000_000  # images, of which every preset takes all that it may
MUCH_HELD_OUT = 0.15  # of the images, where a tenth is usual
FEW_HELD_OUT = 100  # a temperature fitted on fewer depends more on the pictures than on the network


def choose_preset(arguments: argparse.Namespace, device: torch.device) -> str:
    """Return the name of the preset: the given one, else that of the run in --out, else the one for the device.

    So the same command goes on where the GPU has gone, or one has come. Raises OSError for an unreadable folder.
    """
    from model.training.run_folder import RunFolder

    by_device = "best" if device.type == "cuda" else "cpu"
    if arguments.preset:
        return str(arguments.preset)
    begun_with = RunFolder(arguments.out).preset()
    if begun_with is None or begun_with not in PRESETS or begun_with == by_device:
        return by_device
    log.info("preset %s, as the run in %s was begun with; here it would be %s", begun_with, arguments.out, by_device)
    return begun_with


def check_flags(arguments: argparse.Namespace, preset_name: str, init_from: Checkpoint | None, processes: int) -> None:
    """Raise TrainingError for flags that cannot work with any pictures: reading all of those may take minutes."""
    from model.training.checks import check_recipe, check_same_network

    given, size = _given(arguments), arguments.image_size
    recipe = replace(PRESETS[preset_name], **({"cutout": 0} | given))
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
        processes=processes if "batch_size" in given else 1,  # else it depends on the pictures, too
    )


def check_folder(
    arguments: argparse.Namespace, preset_name: str, init_from: Checkpoint | None, device: torch.device
) -> None:
    """Raise TrainingError for what a folder's names show to be impossible, DataError if it is no folder of classes.

    That is to keep weights of other classes, and more pictures than the GPU has room for.
    """
    from model.datasets import count_training_files, named_folder
    from model.training.device_memory import check_device_memory
    from model.training.initial_weights import check_same_classes

    folder = named_folder(arguments.data)
    if folder is None:
        return
    if arguments.keep_initial and init_from is not None:
        check_same_classes(init_from, folder.classes)
    if device.type == "cuda":
        files = count_training_files(folder)
        recipe, _ = _fit(arguments, preset_name, init_from, images=files, classes=len(folder.classes))
        held_out = 0 if folder.held_out_split and arguments.hold_out is None else recipe.hold_out
        check_device_memory(files - held_out, arguments.image_size, device)


def check_run(
    arguments: argparse.Namespace, preset_name: str, init_from: Checkpoint | None, processes: int = 1
) -> dict[str, Any]:
    """Return what of the run in --out is kept where no flag says otherwise: its batch, {} without a run.

    By this it goes on also with another number of `processes`, and after a change of how batches are fitted. Raises
    TrainingError if --out holds a run of another recipe, as far as that shows before the pictures are read, or one
    whose batch the processes cannot share.
    """
    from model.training.errors import TrainingError
    from model.training.initial_weights import digest, named_by_digest
    from model.training.run_folder import RunFolder, check_same_run

    folder = RunFolder(arguments.out)
    saved = folder.identity()
    if saved is None:
        return {}
    given, batch_size = _given(arguments), saved.get("batch_size")
    kept: dict[str, Any] = {}
    if "batch_size" not in given and isinstance(batch_size, int):
        kept["batch_size"] = batch_size
    recipe, _ = _fit(arguments, preset_name, init_from, images=MANY, classes=2, kept=kept)
    of_the_pictures = {"hold_out"} - given.keys()
    wanted = {name: value for name, value in recipe.to_dict().items() if name not in of_the_pictures}
    wanted["init_from"] = digest(init_from) if init_from else None
    saved = named_by_digest(saved, init_from)
    check_same_run(folder.path, {name: saved.get(name) for name in wanted}, wanted)
    if kept and kept["batch_size"] % processes:
        raise TrainingError(
            f"{folder.path} holds a run with a batch of {batch_size}, which {processes} processes cannot share "
            f"equally: take another number of processes, or give another --out, with a --batch-size or without"
        )
    return kept


def _fit(
    arguments: argparse.Namespace,
    preset_name: str,
    init_from: Checkpoint | None,
    *,
    images: int,
    classes: int,
    processes: int = 1,
    held_out: int = 0,
    kept: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Any]]:
    """Return the preset fitted to so many images, and which options in it are those of the network of `init_from`.

    `held_out` of them are brought along to be held out, if any; `kept` are fields that are taken as if they were given.
    """
    given, preset = {**(kept or {}), **_given(arguments)}, PRESETS[preset_name]
    if held_out:
        given["hold_out"] = held_out
    taken = _network_of(init_from, replace(preset, **given), arguments.image_size, given) if init_from else {}
    return preset.for_data(arguments.image_size, images, classes, given | taken, processes=processes), taken


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the fields of a recipe that were given on the command line."""
    given = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name in Recipe.__dataclass_fields__
    }
    return given if arguments.epochs is None else given | {"phases": ((arguments.image_size, arguments.epochs),)}


def build_recipe(
    arguments: argparse.Namespace,
    preset_name: str,
    dataset: Dataset,
    init_from: Checkpoint | None = None,
    *,
    processes: int = 1,
    kept: Mapping[str, Any] | None = None,
) -> Recipe:
    """Fit the preset to the training set and to the processes that share a batch; flags that were given keep theirs.

    The network is that of `init_from`, but for flags that were given; `kept` are the fields that `check_run` has
    returned. Raises DataError if more images are to be held out than there are.
    """
    from model.data import check_hold_out

    given = _given(arguments)
    if "hold_out" in given:
        check_hold_out(dataset, given["hold_out"])  # before values are logged that no run can use
    preset = PRESETS[preset_name]
    images, classes = len(dataset), len(dataset.classes)
    fit = partial(_fit, arguments, preset_name, init_from, classes=classes, held_out=dataset.held_out)
    recipe, taken = fit(images=images, processes=processes, kept=kept)
    if kept and recipe.batch_size > images - recipe.hold_out:  # that run was of other images, as it will say
        kept = None
        recipe, taken = fit(images=images, processes=processes)
    of_size, of_images = (fit(images=number)[0].batch_size for number in (MANY, images))
    suited = []
    if of_images < preset.batch_size:
        suited.append("the training set" if of_images < of_size else "the image size")
    if recipe.batch_size != of_images:
        suited.append(f"{processes} processes")
    why = {"learning_rate": "the batch", "batch_size": " and ".join(suited)}
    if dataset.held_out:
        why["hold_out"] = "the folder for validation"
    for name in Recipe.__dataclass_fields__:
        value, before = getattr(recipe, name), getattr(preset, name)
        if name in taken:
            log.info("%s %s, as the weights of --init-from have it", name, value)
        elif kept and name in kept and value != before:
            log.info("%s %s, as the run in %s has it", name, value, arguments.out)
        elif name not in given and value != before:
            log.info("%s %s instead of %s, to suit %s", name, value, before, why.get(name, "the training set"))
    _log_steps(recipe, len(dataset) - recipe.hold_out, _what_is_fresh(dataset, init_from))
    if arguments.temperature is None and 0 < recipe.hold_out < FEW_HELD_OUT:
        more = "more of them" if dataset.held_out else "more pictures or a larger --hold-out"
        note = f"how sure its answers are will mean little; {more} help"
        log.warning("the calibration is fitted on %d held-out pictures: %s", recipe.hold_out, note)
    if "hold_out" not in given and not dataset.held_out and recipe.hold_out > MUCH_HELD_OUT * images:
        log.warning(
            "%d of the %d pictures, %.0f%%, are held out and not trained on, as there are few: more of them help, or a "
            "smaller --hold-out",
            recipe.hold_out,
            images,
            100 * recipe.hold_out / images,
        )
    last_size, served_size = recipe.phases[-1][0], dataset.images.shape[-1]
    if last_size != served_size:
        log.warning(
            "the last phase is of %d pixels, but %d are what the network is measured on and served",
            last_size,
            served_size,
        )
    return recipe


def _network_of(init_from: Checkpoint, recipe: Recipe, size: int, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the network of `init_from` that `recipe` has otherwise, at `size` pixels, and no flag gave.

    Options that fit already are left alone: a run's state names the recipe with which alone it goes on.
    """
    theirs = asdict(Architecture.from_dict(init_from.metadata.architecture))
    own = asdict(recipe.architecture(theirs["num_classes"], size))
    return {
        name: value
        for name, value in theirs.items()
        if name != "num_classes" and name not in given and value != own[name]
    }


def _what_is_fresh(dataset: Dataset, init_from: Checkpoint | None) -> str:
    """Return which part of the network is untrained: its "weights", its "head", or "" for none."""
    if init_from is None:
        return "weights"
    return "" if init_from.metadata.classes == dataset.classes else "head"


def _log_steps(recipe: Recipe, images: int, fresh: str) -> None:
    """Log the number of steps, and warn if they are few for the untrained part `fresh`: "weights", "head", or ""."""
    of_an_epoch = recipe.steps_per_epoch(images)
    steps = recipe.epochs * of_an_epoch
    log.info("%d steps in %d epochs", steps, recipe.epochs)
    if fresh == "weights" and steps < FEW_STEPS:
        log.warning("%d steps are few for fresh weights: give --init-from, or more --epochs", steps)
    elif fresh == "head" and 0 < steps < FEW_STEPS_OF_A_HEAD:
        enough = -(-FEW_STEPS_OF_A_HEAD // of_an_epoch)
        log.warning("%d steps are few for a fresh head: give more --epochs, such as %d", steps, enough)
