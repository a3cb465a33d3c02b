"""What a training run does, and what it leaves when it was not disturbed."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from model import checkpoint
from model.checkpoint import Checkpoint
from model.data import hold_out
from model.evaluate import compute_logits, score
from model.hardware.device import pick_device
from model.train import Trainer
from model.training import learner
from model.training.augment import augment_batch
from model.training.errors import TrainingError
from model.training.recipe import Recipe
from model.training.self_test import SELF_TEST_COUNT
from tests.toy_training import OVERFITTING, toy_dataset
from tests.unit.model.runs import RECIPE, trainer

pytestmark = pytest.mark.usefixtures("narrow_stages")


def test_sixty_four_images_are_learnt_by_heart(tmp_path: Path) -> None:
    dataset = toy_dataset(size=8)
    recipe = replace(Recipe(), **OVERFITTING, phases=((8, 25),), batch_size=16, ema_decay=0.9)
    path = Trainer(recipe, dataset, tmp_path, device=torch.device("cpu"), temperature=1.0).run()
    loaded = checkpoint.load(path)
    logits = compute_logits(loaded.network(), dataset.images, loaded.metadata.mean, loaded.metadata.std)
    assert torch.equal(logits.argmax(dim=1), dataset.labels)


def test_another_seed_gives_another_network(tmp_path: Path, undisturbed: Path) -> None:
    other = checkpoint.load(trainer(tmp_path, replace(RECIPE, seed=1)).run())
    first = checkpoint.load(undisturbed / "checkpoint.safetensors")
    assert not torch.equal(other.tensors["head.weight"], first.tensors["head.weight"])


def test_seconds_are_those_of_the_steps_and_not_of_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a queue, as a GPU has one, what a step takes shows only where somebody waits for it."""
    clock = [0.0]
    monkeypatch.setattr("model.train.time.monotonic", lambda: clock[0])
    step, save = learner.Learner.step, Trainer._save_state

    def second(self: learner.Learner, *arguments: Any) -> tuple[Tensor, Tensor]:
        clock[0] += 1
        return step(self, *arguments)

    def minute(self: Trainer) -> None:
        clock[0] += 60
        save(self)

    monkeypatch.setattr(learner.Learner, "step", second)
    monkeypatch.setattr(Trainer, "_save_state", minute)
    shown: list[float] = []

    def waits(_done: int, _steps: int, figures: dict[str, float]) -> None:
        shown.append(figures["images_per_s"])

    trainer(tmp_path, save_every_s=0.0, progress=waits, progress_every_s=0.0).run()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [3.0, 6.0, 9.0]
    assert [line["images_per_s"] for line in lines] == [16.0] * 3
    assert shown == [16.0] * 9


def test_metrics_have_one_line_an_epoch(undisturbed: Path) -> None:
    lines = [json.loads(line) for line in (undisturbed / "metrics.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["epochs"], line["size"]) for line in lines] == [(1, 3, 8), (2, 3, 8), (3, 3, 16)]
    for line in lines:
        assert list(line) == [
            "epoch",
            "epochs",
            "size",
            "learning_rate",
            "loss",
            "accuracy",
            "images_per_s",
            "seconds",
            "held_out_accuracy",
            "held_out_nll",
        ]
    assert lines[0]["seconds"] < lines[1]["seconds"] < lines[2]["seconds"]


def test_settings_are_left_in_the_folder(undisturbed: Path) -> None:
    settings = json.loads((undisturbed / "settings.json").read_text())
    assert settings["recipe"] == RECIPE.to_dict()
    assert settings["device"] == "1 CPU threads"
    assert settings["precision"] == "float32"  # in tests, on every processor


def served_probabilities(loaded: Checkpoint, images: Tensor) -> Tensor:
    metadata = loaded.metadata
    logits = compute_logits(loaded.network(), images, metadata.mean, metadata.std)
    return metadata.calibration.probabilities(logits)


@pytest.mark.parametrize("fast_bf16", [False, True])
def test_checkpoint_reproduces_its_own_self_test(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast_bf16: bool
) -> None:
    monkeypatch.setattr(learner, "has_fast_bfloat16", lambda _: fast_bf16)
    # Fitted on noise the temperature would be huge, and every answer the same.
    loaded = checkpoint.load(trainer(tmp_path, temperature=0.5).run())
    probabilities = served_probabilities(loaded, torch.tensor(loaded.self_test_images))
    torch.testing.assert_close(probabilities, torch.tensor(loaded.self_test_probabilities), rtol=0, atol=1e-4)


def test_half_of_the_self_test_are_the_images_that_it_is_least_certain_of(tmp_path: Path) -> None:
    loaded = checkpoint.load(trainer(tmp_path, replace(RECIPE, hold_out=32), temperature=0.5).run())
    _, held = hold_out(toy_dataset(), 32)
    certainty = served_probabilities(loaded, held.images).amax(dim=1).sort().values
    half = SELF_TEST_COUNT // 2
    tested = torch.tensor(loaded.self_test_probabilities).amax(dim=1)[:half]
    torch.testing.assert_close(tested, certainty[:half], rtol=0, atol=1e-4)
    assert certainty[half] - certainty[0] > 1e-3


def test_a_synthetic_self_test_holds_none_of_the_pictures(
    tmp_path: Path, undisturbed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    pictures = {image.numpy().tobytes() for image in toy_dataset().images}
    own = checkpoint.load(undisturbed / "checkpoint.safetensors")
    made = checkpoint.load(trainer(tmp_path, temperature=0.5, synthetic_self_test=True).run())
    assert all(image.tobytes() in pictures for image in own.self_test_images)
    assert not any(image.tobytes() in pictures for image in made.self_test_images)
    assert len({image.tobytes() for image in made.self_test_images}) == SELF_TEST_COUNT
    assert [one.metadata.has_synthetic_self_test for one in (own, made)] == [False, True]
    probabilities = served_probabilities(made, torch.tensor(made.self_test_images))
    torch.testing.assert_close(probabilities, torch.tensor(made.self_test_probabilities), rtol=0, atol=1e-4)
    assert "holds" not in caplog.text


def test_a_checkpoint_that_holds_pictures_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    trainer(tmp_path).run()
    assert "the checkpoint holds 16 of the pictures, to test itself by: the same command with --synth" in caplog.text


def test_measured_figures_are_those_of_the_served_probabilities(undisturbed: Path) -> None:
    loaded = checkpoint.load(undisturbed / "checkpoint.safetensors")
    _, held = hold_out(toy_dataset(), 16)
    expected = score(served_probabilities(loaded, held.images), held).to_dict()
    (measured,) = loaded.metadata.measured
    assert measured["split"] == expected["split"] == "toy held-out"
    assert measured["top1"] == expected["top1"]
    assert measured["nll"] == pytest.approx(expected["nll"], abs=1e-4)


def test_checkpoint_says_what_it_is(undisturbed: Path) -> None:
    metadata = checkpoint.load(undisturbed / "checkpoint.safetensors").metadata
    assert metadata.name == "resnet18-toy"
    assert metadata.classes == ("ant", "bee", "cat", "dog")
    assert (metadata.input_size, metadata.epochs, metadata.seed) == (16, 3, 0)
    assert metadata.temperature_fitted_on == "16 held-out training images"
    assert metadata.measured[0]["images"] == 16
    assert metadata.dataset == {
        "name": "toy",
        "fingerprint": toy_dataset().fingerprint(),
        "training_images": 48,
        "held_out_images": 16,
        "never_trained_on": 16,
    }
    assert RECIPE.to_dict().items() <= metadata.recipe.items()


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, Tensor]]:
    """Keep what every step was made of: all training images, and the index of the batch."""
    seen: list[tuple[Tensor, Tensor]] = []

    def watched(images: Tensor, index: Tensor, *rest: Any) -> Tensor:
        seen.append((images, index))
        return augment_batch(images, index, *rest)

    monkeypatch.setattr(learner, "augment_batch", watched)
    return seen


def test_held_out_images_are_never_trained_on(tmp_path: Path, batches: list[tuple[Tensor, Tensor]]) -> None:
    trainer(tmp_path, replace(RECIPE, phases=((8, 1),), cutmix=1.0)).run()
    seen = {image.numpy().tobytes() for images, _ in batches for image in images}
    indices = torch.cat([index for _, index in batches])
    rest, held = ({image.numpy().tobytes() for image in part.images} for part in hold_out(toy_dataset(), 16))
    assert len(held) == 16
    assert not seen & held
    assert seen == rest
    assert sorted(indices.tolist()) == list(range(48))


def test_every_epoch_has_its_own_order(tmp_path: Path, batches: list[tuple[Tensor, Tensor]]) -> None:
    trainer(tmp_path, replace(RECIPE, phases=((8, 2),), batch_size=48)).run()
    (_, first), (_, second) = batches
    assert not torch.equal(first, second)
    assert sorted(first.tolist()) == sorted(second.tolist())


def test_given_temperature_is_kept(tmp_path: Path) -> None:
    recipe = replace(RECIPE, phases=((8, 1),), hold_out=0)
    metadata = checkpoint.load(trainer(tmp_path, recipe, temperature=1.25).run()).metadata
    assert (metadata.temperature, metadata.temperature_fitted_on) == (1.25, "given")
    assert metadata.measured == ()
    assert metadata.dataset["training_images"] == 64


def test_nothing_to_fit_a_temperature_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing is held out"):
        trainer(tmp_path, replace(RECIPE, hold_out=0))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_impossible_temperature_is_refused(tmp_path: Path, temperature: float) -> None:
    with pytest.raises(TrainingError, match="temperature must be above 0"):
        trainer(tmp_path, temperature=temperature)


def test_batch_larger_than_the_training_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="48 training images are fewer than one batch of 49"):
        trainer(tmp_path, replace(RECIPE, batch_size=49))


def test_progress_is_told_of_every_step_if_asked_often(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    recipe = replace(RECIPE, phases=((8, 2),))
    trainer(tmp_path, recipe, progress=lambda *now: told.append(now[:2]), progress_every_s=0.0).run()
    assert told == [(step, 6) for step in range(1, 7)]


def test_each_epochs_metrics_are_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    trainer(tmp_path, on_epoch=told.append).run()
    assert told == [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("gpus", "expected"), [(1, "cuda"), (0, "cpu")])
def test_device_auto_is_one_that_exists(monkeypatch: pytest.MonkeyPatch, gpus: int, expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"
