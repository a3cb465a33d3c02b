"""A checkpoint of a run that has not come to its end, made of the state that it has saved."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.checkpoint import Checkpoint
from model.train import Trainer
from model.training.errors import Stopped, TrainingError
from model.training.learner import Learner
from tests.toy_training import toy_dataset
from tests.unit.model.runs import RECIPE, epochs_in, everything_stored, trainer

pytestmark = pytest.mark.usefixtures("narrow_stages")

DONE = 5  # steps, of three an epoch


@pytest.fixture
def stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was stopped within its second epoch, each step of which took a second."""
    clock = [0.0]
    step = Learner.step

    def second(self: Learner, *arguments: Any) -> Any:
        clock[0] += 1
        return step(self, *arguments)

    def stop(done: int, *_: object) -> None:
        if done == DONE:
            run.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr("model.train.time.monotonic", lambda: clock[0])
        patch.setattr(Learner, "step", second)
        run = trainer(tmp_path, progress=stop, progress_every_s=0.0)
        with pytest.raises(Stopped, match=r"goes on from .*, or with --finish makes a checkpoint of it as it is"):
            run.run()
    return tmp_path


def finish(out: Path, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", lambda *_: pytest.fail("a step is done"))
        return checkpoint.load(trainer(out).run(finish=True))


def test_it_has_the_averaged_weights_of_the_state_and_says_what_was_done(
    stopped: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = torch.load(stopped / "state.pt", weights_only=True)
    made = finish(stopped, monkeypatch)
    for name, tensor in made.tensors.items():
        torch.testing.assert_close(tensor.float(), state["average"][name], rtol=1e-3, atol=1e-4)
    assert made.metadata.epochs == 1
    assert made.metadata.recipe["ended_early"] == {"epochs": 1, "of": 3, "steps_of_the_next": 2}
    assert made.metadata.recipe["training_seconds"] == DONE
    assert made.metadata.measured[0]["images"] == 16
    assert "finishing after 1 of 3 epochs and 2 steps" in caplog.text
    assert epochs_in(stopped) == [1]


def test_the_run_goes_on_afterwards_as_if_nothing_had_been(
    stopped: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(stopped, monkeypatch)
    made = checkpoint.load(trainer(stopped).run())
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    assert all(torch.equal(value, expected[name]) for name, value in everything_stored(made).items())
    assert "ended_early" not in made.metadata.recipe
    assert made.metadata.epochs == 3


def test_an_early_checkpoint_is_not_taken_for_the_last_one(stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the run was broken off between its last epoch and its own checkpoint."""

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    finish(stopped, monkeypatch)
    with monkeypatch.context() as patch:
        patch.setattr("model.train.write_checkpoint", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer(stopped).run()
    assert "ended_early" not in checkpoint.load(trainer(stopped).run()).metadata.recipe


def test_of_a_finished_run_nothing_is_left_to_finish(undisturbed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (undisturbed / "checkpoint.safetensors").read_bytes()
    finish(undisturbed, monkeypatch)
    assert (undisturbed / "checkpoint.safetensors").read_bytes() == before


def test_without_a_state_there_is_nothing_to_make_it_of(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="holds no saved state, of which --finish could make a checkpoint"):
        trainer(tmp_path / "run").run(finish=True)
    assert not (tmp_path / "run").exists()


def test_only_the_runs_own_recipe_finishes_it(stopped: Path) -> None:
    with pytest.raises(TrainingError, match="with --finish that run's own command makes a checkpoint of it as it is"):
        trainer(stopped, replace(RECIPE, seed=1)).run(finish=True)
    assert not (stopped / "checkpoint.safetensors").exists()


def test_the_runs_own_command_needs_its_own_pictures(stopped: Path) -> None:
    said = "(other images): give another --out; with --finish that run's own command, with the pictures as they were,"
    others = replace(toy_dataset(), labels=torch.arange(64) // 16)
    with pytest.raises(TrainingError, match=re.escape(said)):
        Trainer(RECIPE, others, stopped, device=torch.device("cpu")).run(finish=True)
