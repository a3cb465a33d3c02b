"""`resnet train` that SIGINT or SIGTERM stops, as `docker stop` does: in each phase, and what goes on afterwards."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import main
from model import checkpoint
from model.train import Trainer
from model.training.learner import Learner
from tests.unit.app.toy_runs import train

# Both in what differs by them: the command as a whole, a run's state, a finished run's report.
NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}

pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Put back the handlers that a command sets: a process of its own would take them with it."""
    before = {number: signal.getsignal(number) for number in WORDS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def train_as_typed(out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> object:
    """Run the command with its handlers of signals, and return its exit status."""
    recipe = ["--phases", "8:2", "--batch-size", "4", "--hold-out", "16", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["resnet", "train", "--out", str(out), *recipe, *more])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def raising(number: signal.Signals) -> Any:
    """What takes the place of some work, in which the signal comes."""

    def work(*_: object, **__: object) -> None:
        signal.raise_signal(number)
        pytest.fail("the signal was not obeyed at once")

    return work


def stop_in(work: str, number: signal.Signals, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> None:
    """Run the command, to which the signal comes in the function called `work`."""
    with monkeypatch.context() as patch:
        patch.setattr(work, raising(number))
        assert train_as_typed(out, patch, *more) == 128 + number


@NUMBERS
def test_while_pictures_are_read_it_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    stop_in("model.datasets.load_dataset", number, tmp_path, monkeypatch)
    assert capsys.readouterr().err == f"resnet: {WORDS[number]}\n"
    assert train(tmp_path, "--no-report") == 0


def test_while_the_network_is_compiled_it_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to save, and compiling may take longer than who stops it waits."""
    monkeypatch.setattr("model.training.learner.compiler_works", lambda _device: True)
    stop_in("model.training.learner.Learner.compile", signal.SIGTERM, tmp_path, monkeypatch, "--compile")
    assert capsys.readouterr().err.endswith("\nresnet: terminated\n")
    assert train(tmp_path, "--no-report") == 0


@NUMBERS
def test_a_signal_saves_within_the_epoch_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    step = Learner.step

    def interrupted(self: Learner, epoch: int, step_number: int, *rest: Any) -> Any:
        if (epoch, step_number) == (0, 5):
            signal.raise_signal(number)
        return step(self, epoch, step_number, *rest)

    handler = signal.getsignal(number)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", interrupted)
        assert train(tmp_path, "--no-report") == 128 + number
    assert signal.getsignal(number) is handler
    said = capsys.readouterr().err
    assert "resnet: saving the state after this step; once more stops at once" in said
    assert "the same command goes on from" in said
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["tally"]["steps"]) == (0, 6)
    assert train(tmp_path, "--no-report") == 0


def test_while_it_is_calibrated_it_ends_at_once_and_the_same_command_does_only_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_in("model.train.write_checkpoint", signal.SIGTERM, tmp_path, monkeypatch)
    assert capsys.readouterr().err.endswith("\nresnet: terminated\n")
    assert torch.load(tmp_path / "state.pt", weights_only=True)["epoch"] == 2
    assert not (tmp_path / "checkpoint.safetensors").exists()
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", lambda *_: pytest.fail("a step is done again"))
        assert train(tmp_path, "--no-report") == 0
    checkpoint.load(tmp_path / "checkpoint.safetensors")


def test_one_of_several_processes_finishes_the_checkpoint_and_makes_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others wait for it until then."""
    finish = Trainer._finish

    def signalled(self: Trainer) -> None:
        signal.raise_signal(signal.SIGTERM)
        finish(self)

    monkeypatch.setattr(Trainer, "stops_when_asked", True)
    monkeypatch.setattr(Trainer, "_finish", signalled)
    assert train(tmp_path) == 128 + signal.SIGTERM
    said = capsys.readouterr().err
    assert said.endswith("\nresnet: stopped: the checkpoint is finished, its report is not\n")
    assert "resnet: the other processes wait for this one: it stops after its next step, or with the checkpoint" in said
    assert "saving the state" not in said
    checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert not (tmp_path / "evaluation.json").exists()


@NUMBERS
def test_while_the_report_is_made_it_says_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: signal.Signals
) -> None:
    stop_in("model.report.write_report", number, tmp_path, monkeypatch)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"resnet: {WORDS[number]}: the checkpoint is finished, its report is not"
    checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert train(tmp_path) == 0
    assert "top1" in json.loads((tmp_path / "evaluation.json").read_text())
