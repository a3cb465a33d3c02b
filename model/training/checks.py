"""What a recipe and what goes with it show to be impossible before any image is read. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Callable

from model.architecture import Architecture
from model.training.errors import TrainingError
from model.training.recipe import Recipe

LEAST_BATCH = 2  # of one image, batch norm may see one value a channel, which has no variance

Bound = tuple[str, Callable[[float], bool]]
ABOVE_ZERO: Bound = ("a number above 0", lambda value: 0 < value < math.inf)
NOT_BELOW_ZERO: Bound = ("0 or a number above it", lambda value: 0 <= value < math.inf)
NOT_ALL: Bound = ("a number from 0 to below 1", lambda value: 0 <= value < 1)
SHARE: Bound = ("a share from 0 to 1", lambda value: 0 <= value <= 1)
BOUNDS: dict[str, Bound] = {
    "learning_rate": ABOVE_ZERO,
    **dict.fromkeys(("weight_decay", "cutout", "crop_padding", "hold_out"), NOT_BELOW_ZERO),
    **dict.fromkeys(("label_smoothing", "momentum", "ema_decay", "warmup"), NOT_ALL),
    **dict.fromkeys(("cutmix", "jpeg", "greyscale", "rescale", "keep_initial"), SHARE),
}
WITHOUT_FLAG = {"crop_padding", "momentum", "ema_decay", "warmup"}


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
    _check_numbers(recipe)
    if recipe.batch_size % processes:
        raise TrainingError(f"{processes} processes cannot share a batch of {recipe.batch_size} equally")
    if recipe.crop_padding >= size:
        raise TrainingError(f"crop_padding {recipe.crop_padding}: images of {size} x {size} pixels have no such border")
    if recipe.cutout >= size:
        raise TrainingError(
            f"--cutout {recipe.cutout} would cover images of {size} x {size} pixels: give a smaller one"
        )
    try:
        recipe.architecture(1, size).network_spec()
    except ValueError as error:
        raise TrainingError(str(error)) from error


def _check_numbers(recipe: Recipe) -> None:
    """Raise TrainingError for a number that nothing can be learnt with; NaN is always one."""
    for name, (wanted, is_right) in BOUNDS.items():
        value = getattr(recipe, name)
        if not is_right(value):
            called = name if name in WITHOUT_FLAG else f"--{name.replace('_', '-')}"
            raise TrainingError(f"{called} {value}: expected {wanted}")
    if not recipe.phases or any(side < 1 or epochs < 1 for side, epochs in recipe.phases):
        raise TrainingError(f"--phases {recipe.phases}: expected sizes in pixels and numbers of epochs, each above 0")


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
