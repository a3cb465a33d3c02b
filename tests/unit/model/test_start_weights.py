"""What a run begins with and keeps: weights of a checkpoint, a fresh head, a share of the initial ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.evaluate import compute_logits
from model.train import Trainer
from model.training.errors import TrainingError
from tests.toy_training import toy_dataset
from tests.unit.model.runs import RECIPE, trainer

pytestmark = pytest.mark.usefixtures("narrow_stages")


def test_run_can_go_on_from_a_checkpoint_with_a_recipe_of_its_own(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    standing_still = replace(RECIPE, phases=((16, 1),), learning_rate=1e-12)
    loaded = checkpoint.load(trainer(tmp_path, standing_still, init_from=source).run())
    assert loaded.metadata.recipe["init_from"] == [{"version": source.version, "recipe": source.metadata.recipe}]
    for name, tensor in source.tensors.items():
        if not name.endswith(("running_mean", "running_var")):  # batch norm still sees new pictures
            torch.testing.assert_close(loaded.tensors[name], tensor, rtol=1e-3, atol=1e-6)


def test_any_number_of_runs_can_go_on_one_from_the_other(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    earlier: dict[str, Any] = source.metadata.recipe
    for seed in range(200):  # as older checkpoints have them: each recipe within the next one
        earlier = {"seed": seed, "init_from": {"version": f"{seed:012x}", "recipe": earlier}}
    metadata = source.metadata.model_copy(update={"recipe": earlier})
    source = replace(source, metadata=metadata)
    loaded = checkpoint.load(trainer(tmp_path, replace(RECIPE, phases=((8, 1),)), init_from=source).run())
    first, second, *others = loaded.metadata.recipe["init_from"]
    assert first == {"version": source.version, "recipe": {"seed": 199}}
    assert second == {"version": f"{199:012x}", "recipe": {"seed": 198}}
    assert len(others) == 18


def test_checkpoint_of_another_network_is_no_start(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    with pytest.raises(TrainingError, match=r"another architecture: .* give --arch resnet18 \(not resnet34\)"):
        trainer(tmp_path, replace(RECIPE, arch="resnet34"), init_from=source)


def test_other_classes_get_a_fresh_head_on_trained_weights(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    other = replace(toy_dataset(), classes=("ant", "bee", "cow", "dog", "elk"))
    recipe = replace(RECIPE, hold_out=0)
    tuned = Trainer(recipe, other, tmp_path, device=torch.device("cpu"), temperature=1.0, init_from=source)
    weights = tuned.learner.network.state_dict()
    assert weights["head.weight"].shape[0] == 5
    stored = {name: value.float() for name, value in source.tensors.items() if not name.startswith("head.")}
    assert all(torch.equal(weights[name], value) for name, value in stored.items())


def test_as_many_classes_of_other_names_get_a_fresh_head_too(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    other = replace(toy_dataset(), classes=("dog", "cat", "bee", "ant"))
    tuned = Trainer(RECIPE, other, tmp_path, device=torch.device("cpu"), init_from=source)
    weights = tuned.learner.network.state_dict()
    assert not torch.equal(weights["head.weight"], source.tensors["head.weight"].float())


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_held_out_images_that_the_initial_weights_have_seen_are_told_of(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture, temperature: float | None
) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    recipe = replace(RECIPE, phases=((8, 1),), hold_out=24)
    loaded = checkpoint.load(trainer(tmp_path, recipe, init_from=source, temperature=temperature).run())
    told = [one.getMessage() for one in caplog.records if "--init-from" in one.getMessage()]
    assert len(told) == 2  # at the beginning, and at the end, where the figures are
    assert told[0].startswith("the weights of --init-from were trained on 8 of the 24 held-out images")
    assert told[0].endswith("the calibration that is fitted on them") == (temperature is None)
    note = "24 held-out training images, of which the initial weights had seen 8"
    assert loaded.metadata.temperature_fitted_on == ("given" if temperature else note)


def test_what_the_weights_before_the_initial_ones_have_seen_is_told_of_too(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, notes = checkpoint.load(undisturbed / "checkpoint.safetensors"), []
    for number, hold_out in enumerate((24, 24, 16)):
        recipe = replace(RECIPE, phases=((8, 1),), hold_out=hold_out)
        source = checkpoint.load(trainer(tmp_path / str(number), recipe, init_from=source).run())
        notes.append(source.metadata.temperature_fitted_on)
    assert notes == ["24 held-out training images, of which the initial weights had seen 8"] * 2 + [
        "16 held-out training images"
    ]


@pytest.mark.parametrize("hold_out", [16, 12])
def test_held_out_images_that_are_new_to_the_initial_weights_are_not(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture, hold_out: int
) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    recipe = replace(RECIPE, phases=((8, 1),), hold_out=hold_out)
    loaded = checkpoint.load(trainer(tmp_path, recipe, init_from=source).run())
    assert "--init-from" not in caplog.text
    assert loaded.metadata.dataset["never_trained_on"] == hold_out


@pytest.mark.parametrize(
    ("classes", "level"), [(("ant", "bee", "cat", "dog"), "WARNING"), (("ant", "bee", "cow", "dog"), "INFO")]
)
def test_whether_weights_of_other_images_have_seen_held_out_ones_is_unknown(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture, classes: tuple[str, ...], level: str
) -> None:
    """They may be of the same folder, before pictures were added."""
    caplog.set_level("INFO")
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    dataset = replace(toy_dataset(), classes=classes)
    dataset.images[0, 0, 0, 0] += 1
    recipe = replace(RECIPE, phases=((8, 1),), hold_out=16)
    later = checkpoint.load(
        Trainer(recipe, dataset, tmp_path / "1", device=torch.device("cpu"), init_from=source).run()
    )
    told = [one for one in caplog.records if "trained on some of the 16 held-out images is unknown" in one.getMessage()]
    assert [one.levelname for one in told] == [level] * 2
    note = "16 held-out training images, of which it is unknown how many the initial weights had seen"
    assert later.metadata.temperature_fitted_on == note
    assert later.metadata.dataset["never_trained_on"] is None
    # What the weights before them have seen stays unknown, but not what they have seen themselves.
    notes = []
    for number, hold_out in enumerate((16, 24, 24)):
        more = replace(recipe, hold_out=hold_out)
        run = Trainer(more, dataset, tmp_path / f"2{number}", device=torch.device("cpu"), init_from=later)
        later = checkpoint.load(run.run())
        notes.append((later.metadata.dataset["never_trained_on"], later.metadata.temperature_fitted_on[2:]))
    assert notes == [(None, note[2:]), *[(None, f"{note[2:]}, 8 at least")] * 2]


def test_of_weights_that_say_nothing_of_their_images_nothing_is_known(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    for dataset in ({}, {"fingerprint": "?"}, source.metadata.dataset | {"never_trained_on": 64}):
        silent = replace(source, metadata=source.metadata.model_copy(update={"dataset": dataset}))
        assert not trainer(tmp_path, init_from=silent).seen.is_all


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_final_weights_keep_a_share_of_the_initial_ones(tmp_path: Path, undisturbed: Path, share: float) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    recipe = replace(RECIPE, phases=((16, 1),), learning_rate=0.05)
    tuned = checkpoint.load(trainer(tmp_path / "0", recipe, init_from=source).run()).tensors
    kept = checkpoint.load(trainer(tmp_path / "1", replace(recipe, keep_initial=share), init_from=source).run())
    for name, tensor in source.tensors.items():
        if not name.endswith(("running_mean", "running_var")):
            expected = share * tensor.float() + (1 - share) * tuned[name].float()
            torch.testing.assert_close(kept.tensors[name].float(), expected, rtol=2e-3, atol=2e-4)
    assert not torch.equal(tuned["head.weight"], source.tensors["head.weight"])
    assert kept.metadata.recipe["keep_initial"] == share


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_images_are_normalised_as_the_initial_weights_expect_them(
    tmp_path: Path, undisturbed: Path, share: float
) -> None:
    """Else the average would be of two networks that see other numbers."""
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    bright = replace(toy_dataset(), mean=(0.9, 0.9, 0.9), std=(0.1, 0.1, 0.1))
    recipe = replace(RECIPE, phases=((16, 1),), keep_initial=share)
    tuned = Trainer(recipe, bright, tmp_path, device=torch.device("cpu"), init_from=source)
    torch.testing.assert_close(tuned.learner.mean, torch.tensor(source.metadata.mean))
    torch.testing.assert_close(tuned.learner.std, torch.tensor(source.metadata.std))
    loaded = checkpoint.load(tuned.run())
    assert (loaded.metadata.mean, loaded.metadata.std) == (source.metadata.mean, source.metadata.std)
    images, expected = torch.tensor(loaded.self_test_images), torch.tensor(loaded.self_test_probabilities)
    logits = compute_logits(loaded.network(), images, source.metadata.mean, source.metadata.std)
    torch.testing.assert_close(loaded.metadata.calibration.probabilities(logits), expected, atol=1e-4, rtol=0)


def test_a_run_that_was_begun_with_the_datas_own_normalisation_is_another_one(
    tmp_path: Path, undisturbed: Path
) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    bright = replace(toy_dataset(), mean=(0.9, 0.9, 0.9))
    runs = [
        Trainer(RECIPE, data, tmp_path, device=torch.device("cpu"), init_from=source)
        for data in (toy_dataset(), bright)
    ]
    runs[0].folder.begin({})
    runs[0]._save_state()
    with pytest.raises(TrainingError, match=r"another run \(another mean and std\)"):
        runs[1].run()


def test_nothing_initial_can_be_kept_of_fresh_weights_or_other_classes(tmp_path: Path, undisturbed: Path) -> None:
    with pytest.raises(TrainingError, match="--keep-initial needs --init-from"):
        trainer(tmp_path, replace(RECIPE, keep_initial=0.5))
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    other = replace(toy_dataset(), classes=("ant", "bee", "cow", "dog"))
    with pytest.raises(TrainingError, match="of the same classes"):
        Trainer(replace(RECIPE, keep_initial=0.5), other, tmp_path, device=torch.device("cpu"), init_from=source)
