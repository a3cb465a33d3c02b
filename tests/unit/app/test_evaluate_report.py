"""`resnet evaluate --report` on forty pictures of noise."""

import json
import sys
from pathlib import Path

import pytest
import torch

from app.cli import build_parser
from model.data import Dataset
from tests.unit.app.conftest import TOY_CLASSES

REPORT = {"report.json", "confusion_matrix.png", "reliability_diagram.png", "most_wrong.png"}


def evaluate(*more: str) -> int:
    arguments = build_parser().parse_args(["evaluate", *more])
    return arguments.run(arguments)


def test_report_of_a_checkpoint_agrees_with_the_scores(
    toy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, folder = tmp_path / "result.json", tmp_path / "new" / "report"
    assert evaluate("--weights", str(toy_weights), "--json", str(result), "--report", str(folder)) == 0
    assert {path.name for path in folder.iterdir()} == REPORT
    scores, report = json.loads(result.read_text()), json.loads((folder / "report.json").read_text())
    assert (report["split"], report["images"]) == (scores["split"], 40) == ("toy test", 40)
    assert (report["top1"], report["ece"]) == (pytest.approx(scores["top1"]), scores["ece"])
    assert [sum(row) for row in report["confusion_matrix"]] == [14, 13, 13, 0]
    printed = capsys.readouterr().out
    assert scores["per_class"]["dog"] is None
    assert "dog          no images\n" in printed
    assert printed.endswith(f"report in {folder}\n")


def test_report_of_a_service_is_about_its_answers(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always_bees(url: str, dataset: Dataset, *rest: object) -> tuple[dict[str, str], torch.Tensor]:
        return {"name": "bees", "version": "0" * 12}, torch.tensor([[0.1, 0.7, 0.1, 0.1]]).repeat(len(dataset), 1)

    monkeypatch.setattr("app.client.classify_dataset", always_bees)
    monkeypatch.setattr("app.client.fetch_card", lambda *_: {"input_size": 16, "classes": TOY_CLASSES})
    assert evaluate("--url", "http://127.0.0.1:9", "--limit", "10", "--report", str(tmp_path / "report")) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["confusion_matrix"] == [[0, 4, 0, 0], [0, 3, 0, 0], [0, 3, 0, 0], [0, 0, 0, 0]]
    assert report["ece"] == pytest.approx(0.7 - 0.3, abs=1e-6)
    assert len(report["most_wrong"]) == 7


def test_without_report_nothing_is_drawn(toy_weights: Path, tmp_path: Path) -> None:
    assert evaluate("--weights", str(toy_weights)) == 0
    assert list(tmp_path.iterdir()) == [toy_weights]


def test_missing_matplotlib_is_said_before_the_evaluation(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert evaluate("--weights", str(toy_weights), "--report", str(tmp_path / "report")) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("resnet: error: drawing the report needs the optional extra 'plots'")
    assert not (tmp_path / "report").exists()


def test_report_folder_that_is_a_file_is_one_line(
    toy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate("--weights", str(toy_weights), "--report", str(toy_weights)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("resnet: error: ")
    assert str(toy_weights) in line
