"""What a recipe and what goes with it show to be impossible before any image is read. Nothing here needs torch."""

from __future__ import annotations

from model.architecture import Architecture
from model.training.errors import TrainingError
from model.training.recipe import Recipe

LEAST_BATCH = 2  # of one image, batch norm may see one value a channel, which has no variance


def check_recipe(
    recipe: Recipe, size: int, *, temperature: float | None, has_initial: bool, processes: int = 1
) -> None:
    """Raise TrainingError if no run on images of size x size pixels can be made of a recipe.

    `temperature` is the one that was given, None where one is to be fitted; `has_initial` is whether there are weights
    to start from; `processes` share each batch.
    """
    if recipe.hold_out == 0 and temperature is None:
        raise TrainingError(
            "nothing is held out to fit the temperature on: give --temperature, or --hold-out and pictures for it"
        )
    if temperature is not None and not temperature > 0:
        raise TrainingError(f"the temperature must be above 0, not {temperature}")
    if recipe.keep_initial and not has_initial:
        raise TrainingError("--keep-initial needs --init-from, a checkpoint of the same classes")
    if recipe.batch_size < LEAST_BATCH:
        raise TrainingError(f"--batch-size {recipe.batch_size}: batch norm needs {LEAST_BATCH} images at least")
    if recipe.batch_size % processes:
        raise TrainingError(f"{processes} processes cannot share a batch of {recipe.batch_size} equally")
    if recipe.cutout >= size:
        raise TrainingError(
            f"--cutout {recipe.cutout} would cover images of {size} x {size} pixels: give a smaller one"
        )
    try:
        recipe.architecture(1, size).network_spec()
    except ValueError as error:
        raise TrainingError(str(error)) from error


def check_same_network(wanted: Architecture, theirs: Architecture, whose: str) -> None:
    """Raise TrainingError if weights of `whose` do not fit, but for the head, a network that was asked for."""
    differing = [
        name
        for name in Architecture.__dataclass_fields__
        if name != "num_classes" and getattr(theirs, name) != getattr(wanted, name)
    ]
    if differing:
        options = ", ".join(
            f"--{name.replace('_', '-')} {getattr(theirs, name)} (not {getattr(wanted, name)})" for name in differing
        )
        raise TrainingError(f"{whose} is of another architecture: to go on from it give {options}")
