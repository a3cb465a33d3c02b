import json
from dataclasses import replace
from typing import Any

import pytest

from model.architecture import Architecture
from model.training.recipe import PRESETS, Recipe, earlier_runs, lineage, parse_phases


def test_phases_are_read_from_text() -> None:
    assert parse_phases("16:10,32:2") == ((16, 10), (32, 2))


@pytest.mark.parametrize("text", ["", "16", "16:x", "16:1:2", "7:1", "16:0", "16:1,"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected SIZE:EPOCHS"):
        parse_phases(text)


def test_every_epoch_has_the_size_of_its_phase() -> None:
    recipe = Recipe(phases=((16, 2), (24, 1), (32, 2)))
    assert recipe.epochs == 5
    assert [recipe.size_of(epoch) for epoch in range(recipe.epochs)] == [16, 16, 24, 32, 32]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_json(name: str) -> None:
    fields = json.loads(json.dumps(PRESETS[name].to_dict()))
    fields["phases"] = tuple(map(tuple, fields["phases"]))
    assert Recipe(**fields) == PRESETS[name]


@pytest.mark.parametrize(
    ("stem", "size", "expected"),
    [
        ("auto", 32, "cifar"),
        ("auto", 64, "cifar"),
        ("auto", 65, "imagenet"),
        ("auto", 224, "imagenet"),
        ("imagenet", 32, "imagenet"),
        ("cifar", 224, "cifar"),
    ],
)
def test_stem_is_the_one_given_or_follows_the_image_size(stem: str, size: int, expected: str) -> None:
    assert Recipe(stem=stem).architecture(10, size).stem == expected


def test_network_is_the_recipes() -> None:
    recipe = Recipe(arch="resnet101", groups=32, width_per_group=8, shortcut="none")
    assert recipe.architecture(7, 32) == Architecture("resnet101", 7, "cifar", 32, 8, "none")


@pytest.mark.parametrize("name", PRESETS)
def test_cifar_gets_the_presets_as_they_are(name: str) -> None:
    for classes in (10, 100):
        assert PRESETS[name].for_data(32, 50_000, classes, {}) == PRESETS[name]


@pytest.mark.parametrize(
    ("size", "phases", "crop_padding", "cutout"),
    [
        (8, ((8, 7), (8, 1), (8, 2)), 1, 2),
        (50, ((24, 7), (36, 1), (50, 2)), 6, 12),
        (64, ((32, 7), (48, 1), (64, 2)), 8, 16),
        (224, ((112, 7), (168, 1), (224, 2)), 28, 56),
    ],
)
def test_lengths_grow_with_the_images(
    size: int, phases: tuple[tuple[int, int], ...], crop_padding: int, cutout: int
) -> None:
    recipe = replace(PRESETS["cpu"], cutout=8).for_data(size, 50_000, 10, {})
    assert (recipe.phases, recipe.crop_padding, recipe.cutout) == (phases, crop_padding, cutout)


@pytest.mark.parametrize(
    ("images", "classes", "held", "batch_size"),
    [
        (20_000, 10, 2000, 128),
        (2000, 4, 200, 128),
        (1000, 4, 100, 64),
        (300, 20, 30, 32),
        (150, 30, 30, 8),
        (12, 2, 2, 8),
        (11, 10, 1, 8),
        (4, 2, 1, 3),
        (3, 2, 1, 2),
        (2, 2, 0, 2),
    ],
)
def test_small_sets_hold_out_a_tenth_and_take_small_batches(
    images: int, classes: int, held: int, batch_size: int
) -> None:
    recipe = PRESETS["cpu"].for_data(32, images, classes, {})
    assert (recipe.hold_out, recipe.batch_size) == (held, batch_size)
    assert recipe.learning_rate == pytest.approx(0.1 * batch_size / 128)


def test_what_is_given_stays_as_it_is() -> None:
    given = {"phases": ((16, 3),), "crop_padding": 4, "cutout": 5, "hold_out": 40, "learning_rate": 0.3}
    recipe = PRESETS["standard"].for_data(64, 360, 3, given)
    assert {name: getattr(recipe, name) for name in given} == given
    assert recipe.batch_size == 32  # of the 320 images that are left
    recipe = PRESETS["standard"].for_data(64, 360, 3, {"batch_size": 300})
    assert recipe.batch_size == 300


@pytest.mark.parametrize("batch_size", [64, 128, 512, 1024])
def test_a_smaller_batch_takes_smaller_steps_whoever_chose_it(batch_size: int) -> None:
    recipe = PRESETS["standard"].for_data(32, 50_000, 10, {"batch_size": batch_size})
    assert recipe.learning_rate == pytest.approx(min(0.4, 0.4 * batch_size / 512))
    both = {"batch_size": batch_size, "learning_rate": 0.3}
    assert PRESETS["standard"].for_data(32, 50_000, 10, both).learning_rate == 0.3


@pytest.mark.parametrize(
    ("preset", "size", "given", "batch_size"),
    [
        ("cpu", 64, {}, 128),
        ("cpu", 128, {}, 128),  # its first layers reduce it
        ("cpu", 224, {}, 64),
        ("best", 224, {}, 256),
        ("cpu", 512, {}, 16),
        ("cpu", 224, {"stem": "cifar"}, 8),  # as the shipped weights have it
        ("best", 224, {"stem": "cifar"}, 32),
        ("best", 32, {"phases": ((224, 1),)}, 32),
        ("cpu", 512, {"stem": "cifar"}, 8),
        ("cpu", 224, {"batch_size": 128}, 128),
    ],
)
def test_large_images_take_small_batches_which_fit_into_memory(
    preset: str, size: int, given: dict[str, Any], batch_size: int
) -> None:
    recipe = PRESETS[preset].for_data(size, 50_000, 10, given)
    assert recipe.batch_size == batch_size
    whole = PRESETS[preset]
    assert recipe.learning_rate == pytest.approx(whole.learning_rate * batch_size / whole.batch_size)


@pytest.mark.parametrize(
    ("processes", "images", "batch_size"),
    [(2, 50_000, 128), (3, 50_000, 126), (5, 50_000, 125), (3, 100, 6), (12, 100, 12)],
)
def test_a_presets_batch_can_be_shared_by_any_number_of_processes(processes: int, images: int, batch_size: int) -> None:
    recipe = PRESETS["cpu"].for_data(32, images, 4, {}, processes=processes)
    assert recipe.batch_size == batch_size
    assert recipe.learning_rate == pytest.approx(0.1 * batch_size / 128)
    given = PRESETS["cpu"].for_data(32, images, 4, {"batch_size": 16}, processes=processes)
    assert given.batch_size == 16  # which may be refused, but not changed


def test_earlier_runs_are_a_flat_list_also_where_each_recipe_holds_the_one_before_it() -> None:
    first, second, third = ({"seed": seed} for seed in range(3))
    nested = second | {"init_from": {"version": "a", "recipe": first}}
    runs = [{"version": "b", "recipe": second}, {"version": "a", "recipe": first}]
    assert earlier_runs(first) == []
    assert earlier_runs(third | {"init_from": {"version": "b", "recipe": nested}}) == runs
    assert lineage("b", nested) == runs
    assert lineage("c", third | {"init_from": runs}) == [{"version": "c", "recipe": third}, *runs]
    assert earlier_runs({"init_from": {"version": "d", "recipe": third | {"init_from": runs}}})[1:] == runs


@pytest.mark.parametrize("start", [None, "a", {}, {"version": "a"}, {"version": "a", "recipe": "unknown"}])
def test_what_cannot_be_read_of_earlier_runs_is_none(start: object) -> None:
    assert earlier_runs({"init_from": start}) == []


def test_no_more_than_the_last_runs_are_kept() -> None:
    recipe: dict[str, Any] = {"seed": 0}
    for seed in range(1, 300):
        recipe = {"seed": seed, "init_from": lineage(f"{seed - 1}", recipe)}
    assert [run["version"] for run in recipe["init_from"]] == [str(seed) for seed in range(298, 278, -1)]
