"""What `resnet train` says and leaves when it is done: figures and pictures of the test set, or why there are none."""

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.data import DataError, Dataset, NoTestSet, Split
from model.evaluate import expected_calibration_error
from model.training.run_folder import RunFolder
from tests.unit.app.toy_runs import crash_in_epoch, toy_dataset, train

PNGS = {"learning_curves.png", "confusion_matrix.png", "reliability_diagram.png", "most_wrong.png"}

pytestmark = pytest.mark.usefixtures("tiny_runs")


def test_a_run_ends_with_a_report_on_the_test_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    loaded = checkpoint.load(tmp_path / "checkpoint.safetensors")
    assert {name: found[name] for name in ("model", "version", "source", "split", "images")} == {
        "model": "resnet18-toy",
        "version": loaded.version,
        "source": "checkpoint",
        "split": "toy test",
        "images": 40,
    }
    path, scores = capsys.readouterr().out.splitlines()
    assert path == str(tmp_path / "checkpoint.safetensors")
    worst = min(found["per_class"], key=lambda name: found["per_class"][name])
    shown = f"test top-1 {found['top1']:.4f} of 40 images (0.2500 by always answering ant)"
    assert scores == (
        f"{shown}, balanced accuracy {found['balanced_accuracy']:.4f}, ece {found['ece']:.4f} (15 bins), "
        f"worst class {worst} {found['per_class'][worst]:.4f} of 10"
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["top1"], report["ece"]) == (pytest.approx(found["top1"]), found["ece"])
    assert sum(map(sum, report["confusion_matrix"])) == 40
    files = {path.name for path in tmp_path.iterdir()}
    assert files == PNGS | {
        "settings.json",
        "metrics.jsonl",
        "state.pt",
        "checkpoint.safetensors",
        "evaluation.json",
        "report.json",
        "timing.json",
    }


class Pipe(io.StringIO):
    """A pipe whose reader goes after so many lines."""

    def __init__(self, lines: int) -> None:
        super().__init__()
        self.lines = lines

    def flush(self) -> None:
        if self.getvalue().count("\n") > self.lines:
            raise BrokenPipeError(32, "Broken pipe")


@pytest.mark.parametrize("lines", [0, 1])
def test_a_run_whose_lines_nobody_reads_is_reported_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lines: int
) -> None:
    monkeypatch.setattr(sys, "stdout", Pipe(lines))
    with pytest.raises(BrokenPipeError):
        train(tmp_path)
    assert "error" not in capsys.readouterr().err
    assert PNGS | {"evaluation.json", "report.json", "timing.json"} <= {path.name for path in tmp_path.iterdir()}


def test_a_run_whose_state_was_moved_away_is_known_by_what_it_left(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    (tmp_path / "state.pt").unlink()
    RunFolder(tmp_path).check_ours()


def test_the_report_measures_what_is_served(tmp_path: Path) -> None:
    assert train(tmp_path, "--temperature", "0.5") == 0
    loaded, dataset = checkpoint.load(tmp_path / "checkpoint.safetensors"), toy_dataset(split="test")
    mean, std = (torch.tensor(one)[:, None, None] for one in (loaded.metadata.mean, loaded.metadata.std))
    with torch.inference_mode():
        logits = loaded.network()((dataset.images / 255 - mean) / std)
    expected = expected_calibration_error(torch.softmax(logits / 0.5, dim=1), dataset.labels)
    assert json.loads((tmp_path / "evaluation.json").read_text())["ece"] == pytest.approx(expected, abs=1e-4)


def test_of_a_run_that_was_ended_early_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        crash_in_epoch(2, patch)
        assert train(tmp_path) == 1
    capsys.readouterr()
    assert train(tmp_path, "--finish") == 0
    assert "\nafter 1 of 2 epochs: test top-1 " in capsys.readouterr().out
    early = {"epochs": 1, "of": 2, "steps_of_the_next": 0}
    assert json.loads((tmp_path / "evaluation.json").read_text())["ended_early"] == early
    assert json.loads((tmp_path / "timing.json").read_text())["training"] > 0
    assert train(tmp_path) == 0
    assert "ended_early" not in json.loads((tmp_path / "evaluation.json").read_text())


def test_no_report_leaves_the_test_set_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    splits: list[Split] = []

    def watched(*_where: object, split: Split, **_options: object) -> Dataset:
        splits.append(split)
        return toy_dataset(split=split)

    monkeypatch.setattr("model.datasets.load_dataset", watched)
    assert train(tmp_path, "--no-report") == 0
    assert splits == ["train"]
    assert not {path.name for path in tmp_path.iterdir()} & (PNGS | {"report.json", "evaluation.json"})


def only_training_data(error: DataError) -> Callable[..., Dataset]:
    """What loads the training split, and raises `error` for the test split."""

    def load(*_where: object, split: Split, **_options: object) -> Dataset:
        if split == "test":
            raise error
        return toy_dataset(split=split)

    return load


def test_without_a_test_set_only_the_learning_curves_are_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", only_training_data(NoTestSet("there is none")))
    assert train(tmp_path) == 0
    assert capsys.readouterr().err.splitlines()[-1] == (
        "resnet: no test set, so only the learning curves are drawn: there is none"
    )
    assert {path.name for path in tmp_path.iterdir()} & (PNGS | {"report.json", "evaluation.json"}) == {
        "learning_curves.png"
    }


def test_a_test_set_that_cannot_be_read_any_more_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", only_training_data(DataError("it has gone")))
    assert train(tmp_path) == 1
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == "resnet: error: it has gone"
    assert shown.out.strip() == str(tmp_path / "checkpoint.safetensors")


def test_a_class_that_came_while_it_was_trained_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grown(*_where: object, split: Split, **_options: object) -> Dataset:
        dataset = toy_dataset(split=split)
        return dataset if split == "train" else replace(dataset, classes=("ant", "bee", "cat", "cow", "dog"))

    monkeypatch.setattr("model.datasets.load_dataset", grown)
    assert train(tmp_path) == 1
    path = tmp_path / "checkpoint.safetensors"
    said = f"the classes of toy are not those of {path}: the data alone has 'cow'"
    assert capsys.readouterr().err.splitlines()[-1] == f"resnet: error: {said}"


def test_without_matplotlib_a_run_ends_well_and_with_a_hint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert train(tmp_path) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("resnet: no pictures: drawing the report needs the optional extra 'plots'")
    files = {path.name for path in tmp_path.iterdir()}
    assert {"evaluation.json", "report.json"} <= files
    assert not files & PNGS
