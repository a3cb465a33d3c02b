"""`resnet train` on 112 pictures of noise, as a person sees it: what it refuses, and the run's folder."""

import json
import logging
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from app.cli import build_parser
from app.commands.endings import CommandError
from model import checkpoint
from model.data import Dataset
from model.training.distributed import World
from model.training.errors import TrainingError
from model.training.learner import Learner
from tests.unit.app.toy_runs import crash_in_epoch, toy_dataset, train

pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.mark.parametrize(
    "raised", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError("memory"), RuntimeError("a shape is wrong")]
)
def test_too_little_memory_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception
) -> None:
    def step(*_: object) -> None:
        raise raised

    monkeypatch.setattr(Learner, "step", step)
    if "memory" not in str(raised):
        with pytest.raises(RuntimeError, match="a shape is wrong"):
            train(tmp_path)
        return
    assert train(tmp_path) == 1
    said = "error: out of memory: take a smaller --batch-size or --image-size, or fewer pictures\n"
    assert capsys.readouterr().err.endswith(said)


def test_a_full_disk_loses_nothing_that_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "state.pt"))

    with monkeypatch.context() as patch:
        patch.setattr("model.training.run_folder.RunFolder.save_state", full)
        assert train(tmp_path, "--no-report") == 1
    note = "what was saved before is kept, and with more room the same command goes on"
    assert capsys.readouterr().err.endswith(f"No space left on device: '{tmp_path}/state.pt': {note}\n")
    assert train(tmp_path, "--no-report") == 0


def test_no_more_threads_than_a_container_has_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    monkeypatch.setattr("model.hardware.device.available_cores", lambda: 1)
    assert train(tmp_path, "--no-report") == 0
    assert json.loads((tmp_path / "settings.json").read_text())["device"] == "1 CPU threads"


def test_pictures_are_kept_out_of_the_checkpoint_where_that_is_asked(tmp_path: Path) -> None:
    assert train(tmp_path, "--no-report", "--synthetic-self-test") == 0
    assert checkpoint.load(tmp_path / "checkpoint.safetensors").metadata.has_synthetic_self_test


def test_a_finished_run_keeps_its_times(tmp_path: Path) -> None:
    assert train(tmp_path, "--no-report") == 0
    (tmp_path / "timing.json").write_text("of the run")
    assert train(tmp_path, "--no-report") == 0
    assert (tmp_path / "timing.json").read_text() == "of the run"


@pytest.mark.parametrize("rank", [0, 1])
def test_one_of_several_processes_warns_of_the_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: int
) -> None:
    def stop(*_: object, **__: object) -> None:
        logging.getLogger("model.training").warning("of another kind")
        raise TrainingError("here")

    monkeypatch.setattr("model.training.distributed.join_world", lambda device: nullcontext((World(rank, 2), device)))
    monkeypatch.setattr("model.train.Trainer", stop)
    monkeypatch.setattr("app.commands.train.set_up_logging", lambda *_: None)
    assert train(tmp_path, "--no-report") == 1
    assert ("steps are few for fresh weights" in caplog.text) == (rank == 0)
    assert "of another kind" in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_held_out_pictures_that_look_like_others_are_told_of_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, rank: int
) -> None:
    dataset = toy_dataset(split="train")
    dataset.images[2] = dataset.images[1]

    def load(*_: object, **__: object) -> Dataset:
        paths = tuple(f"/pictures/{number}.png" for number in range(112))
        return replace(dataset, paths=paths)

    def stop(*_: object, **__: object) -> None:
        raise TrainingError("here")

    monkeypatch.setattr("model.datasets.load_dataset", load)
    monkeypatch.setattr("model.training.distributed.join_world", lambda device: nullcontext((World(rank, 2), device)))
    monkeypatch.setattr("model.train.Trainer", stop)
    monkeypatch.setattr("app.commands.train.set_up_logging", lambda *_: None)
    monkeypatch.setattr("model.image_folder.notices.held_out_mask", lambda *_: torch.arange(112) == 1)
    assert train(tmp_path, "--no-report") == 1
    assert ("1 held-out picture(s) look like ones that are trained on" in caplog.text) == (rank == 0)


def scalars(out: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(out / "tensorboard")).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_tensorboard_has_every_epoch_of_a_resumed_run_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_in_epoch(2, patch)
        assert train(tmp_path, "--tensorboard") == 1
    assert [step for step, _ in scalars(tmp_path)["loss/training"]] == [1, 2]
    assert train(tmp_path, "--tensorboard", "--no-report") == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    curves = scalars(tmp_path)
    for tag, name in {
        "loss/training": "loss",
        "accuracy/training": "accuracy",
        "learning_rate": "learning_rate",
        "accuracy/held_out": "held_out_accuracy",
    }.items():
        assert curves[tag] == [(line["epoch"], pytest.approx(line[name])) for line in lines]


def test_without_tensorboard_there_are_no_event_files(tmp_path: Path) -> None:
    assert train(tmp_path, "--no-report") == 0
    assert not (tmp_path / "tensorboard").exists()


def test_missing_tensorboard_is_said_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(tmp_path / "run", "--tensorboard") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("resnet: error: --tensorboard needs the optional extra 'tensorboard'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "-1"),
        ("--batch-size", "0"),
        ("--batch-size", "1"),
        ("--batch-size", "many"),
        ("--label-smoothing", "2"),
        ("--label-smoothing", "1"),
        ("--label-smoothing", "nan"),
        ("--learning-rate", "0"),
        ("--learning-rate", "-0.1"),
        ("--learning-rate", "inf"),
        ("--cutmix", "1.1"),
        ("--temperature", "inf"),
        ("--temperature", "0"),
        ("--weight-decay", "-1"),
        ("--learning-rate", "nan"),
        ("--cutout", "-3"),
        ("--hold-out", "1.5"),
        ("--temperature", "1e-300"),
        ("--temperature", "1e300"),
        ("--weight-decay", "1e300"),
        ("--cutout", "100000000000000000000"),
        ("--hold-out", "1e300"),
        ("--epochs", "1e300"),
        ("--seed", "99999999999999999999999"),
        ("--seed", "9" * 5000),
        ("--seed", "many"),
        ("--out", ""),
    ],
)
def test_what_cannot_be_trained_with_is_refused_in_a_line(flag, value, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["train", flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: expected a" in capsys.readouterr().err


@pytest.mark.parametrize("phases", ["4:1|32:0|x", "100000000:1", "32:1000000000000", "4:1", "x"])
def test_phases_that_are_none_are_refused_with_the_form_that_is_wanted(phases, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["train", "--phases", phases])
    assert ended.value.code == 2
    assert "argument --phases: expected SIZE:EPOCHS[,SIZE:EPOCHS...], such as 16:10,32:2" in capsys.readouterr().err


@pytest.mark.parametrize("given", [("--epochs", "3", "--phases", "16:2"), ("--phases", "16:2", "--epochs", "3")])
def test_epochs_and_phases_exclude_each_other(given, capsys):
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["train", *given])
    assert ended.value.code == 2
    assert f"argument {given[2]}: not allowed with argument {given[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "number"), [("-1", -1), ("0", 0), (str(2**63 - 1), 2**63 - 1)])
def test_any_seed_of_64_bits_is_taken(text, number):
    assert build_parser().parse_args(["train", "--seed", text]).seed == number


@pytest.mark.parametrize(("flags", "fitted"), [((), True), (("--temperature", "1.5"), False)])
def test_what_near_duplicates_are_said_to_spoil_goes_by_whether_the_calibration_is_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], fitted: bool
) -> None:
    told: list[object] = []
    monkeypatch.setattr("model.image_folder.notices.tell_of_held_out_pictures", lambda *_, fitted: told.append(fitted))
    assert train(tmp_path, "--no-report", *flags) == 0
    assert told == [fitted]


@pytest.mark.parametrize(
    ("flags", "environment", "device"),
    [((), None, "auto"), ((), "cpu", "cpu"), (("--device", "cpu"), "cuda:7", "cpu"), ((), "cuda:7", "cuda:7")],
)
def test_the_device_is_a_flag_or_a_setting(tmp_path, monkeypatch, flags, environment, device):
    class Picked(Exception):
        """Which device it was."""

    def pick(name):
        raise Picked(name)

    monkeypatch.delenv("RESNET_DEVICE", raising=False)
    if environment is not None:
        monkeypatch.setenv("RESNET_DEVICE", environment)
    monkeypatch.setattr("model.hardware.device.pick_device", pick)
    arguments = build_parser().parse_args(["train", "--out", str(tmp_path / "run"), *flags])
    with pytest.raises(Picked, match=f"^{device}$"):
        arguments.run(arguments)


def test_a_device_that_is_none_is_one_line(tmp_path):
    arguments = build_parser().parse_args(["train", "--out", str(tmp_path / "run"), "--device", "tpu"])
    with pytest.raises(CommandError, match="resnet: error: device: "):
        arguments.run(arguments)
