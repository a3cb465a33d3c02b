import json

import pytest

from model.recipe import PRESETS, Recipe, parse_phases
from model.resnet import Architecture


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
