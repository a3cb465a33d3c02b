import math
from dataclasses import replace

import pytest

from model.architecture import Architecture
from model.training.checks import check_recipe, check_same_network
from model.training.errors import TrainingError
from model.training.recipe import PRESETS, Recipe


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hold_out": 0}, "nothing is held out"),
        ({"keep_initial": 0.3}, "--keep-initial needs --init-from"),
        ({"batch_size": 1}, "--batch-size 1: batch norm needs 2 images at least"),
        ({"batch_size": 16}, "3 processes cannot share a batch of 16 equally"),
        ({"cutout": 32}, "--cutout 32 would cover images of 32 x 32 pixels"),
        ({"learning_rate": 0.0}, "--learning-rate 0.0: expected a number above 0"),
        ({"learning_rate": -1.0}, "--learning-rate -1.0"),
        ({"learning_rate": math.nan}, "--learning-rate nan"),
        ({"learning_rate": math.inf}, "--learning-rate inf"),
        ({"weight_decay": -1e-4}, "--weight-decay -0.0001"),
        ({"label_smoothing": 1.0}, "--label-smoothing 1.0: expected a number from 0 to below 1"),
        ({"momentum": 1.0}, "momentum 1.0: expected a number from 0 to below 1"),
        ({"ema_decay": 1.0}, "ema_decay 1.0"),
        ({"ema_decay": math.nan}, "ema_decay nan"),
        ({"warmup": 1.0}, "warmup 1.0"),
        ({"cutmix": 1.5}, "--cutmix 1.5: expected a share from 0 to 1"),
        ({"jpeg": -0.1}, "--jpeg -0.1"),
        ({"cutout": -2}, "--cutout -2: expected 0 or a number above it"),
        ({"crop_padding": 32}, "crop_padding 32: images of 32 x 32 pixels have no such border"),
        ({"hold_out": -1}, "--hold-out -1"),
        ({"phases": ()}, "--phases"),
        ({"phases": ((32, 0),)}, "--phases"),
        ({"groups": 32}, "groups and width_per_group are for bottleneck blocks"),
        ({"arch": "resnet50", "width_per_group": 0}, "must be integers of at least 1"),
    ],
)
def test_what_no_run_can_be_made_of_is_refused(changes: dict[str, object], said: str) -> None:
    recipe = replace(Recipe(), batch_size=6)
    check_recipe(recipe, 32, temperature=None, has_initial=False, processes=3)
    with pytest.raises(TrainingError, match=said):
        check_recipe(replace(recipe, **changes), 32, temperature=None, has_initial=False, processes=3)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass(preset: str) -> None:
    check_recipe(PRESETS[preset], 32, temperature=None, has_initial=False)


def test_the_smallest_of_what_passes() -> None:
    recipe = replace(Recipe(), hold_out=0, keep_initial=0.3, batch_size=2, cutout=7)
    check_recipe(recipe, 8, temperature=1.0, has_initial=True, processes=2)


def test_a_head_may_differ_and_nothing_else() -> None:
    check_same_network(Architecture(num_classes=3), Architecture(num_classes=10), "x")
    said = r"x is of another architecture: to go on from it give --arch resnet50 \(not resnet18\), --groups 2 \(not 1\)"
    with pytest.raises(TrainingError, match=said):
        check_same_network(Architecture(), Architecture("resnet50", groups=2), "x")
