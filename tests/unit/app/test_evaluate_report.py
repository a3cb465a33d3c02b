"""`resnet evaluate --report` on forty pictures of noise."""

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from app.client import Card
from model import checkpoint
from model.data import Dataset
from tests.unit.app.command_runs import run_command
from tests.unit.app.conftest import TOY_CLASSES

REPORT = {"report.json", "confusion_matrix.png", "reliability_diagram.png", "most_wrong.png"}


pytestmark = pytest.mark.usefixtures("own_logging")


def evaluate(*more: str) -> int:
    return run_command("evaluate", *more)


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
    assert scores["per_class"].pop("dog") is None
    mean = sum(scores["per_class"].values()) / 3
    assert (scores["balanced_accuracy"], report["balanced_accuracy"]) == (pytest.approx(mean), pytest.approx(mean))
    assert f"balanced accuracy {scores['balanced_accuracy']:.4f}," in printed
    assert "dog          no images\n" in printed
    assert printed.endswith(f"report in {folder}\n")


def test_report_of_a_service_is_about_its_answers(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always_bees(url: str, dataset: Dataset, *rest: object) -> tuple[dict[str, str], torch.Tensor]:
        return {"name": "bees", "version": "0" * 12}, torch.tensor([[0.1, 0.7, 0.1, 0.1]]).repeat(len(dataset), 1)

    monkeypatch.setattr("app.client.classify_dataset", always_bees)
    monkeypatch.setattr("app.client.fetch_card", lambda *_: Card(input_size=16, classes=TOY_CLASSES))
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


@pytest.mark.parametrize("report", ["new", "cat/report", "."])
@pytest.mark.parametrize("link", [False, True])
def test_a_report_among_the_pictures_would_be_a_class_the_next_time(
    toy_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], report: str, link: bool
) -> None:
    pictures, folder = tmp_path / "pictures", tmp_path / ("link" if link else "pictures") / report
    (pictures / "cat").mkdir(parents=True)
    (tmp_path / "link").symlink_to(pictures)
    data = f"folder:{pictures}"
    assert evaluate("--weights", str(toy_weights), "--data", data, "--report", str(folder)) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"resnet: error: --report {folder} lies within {pictures}, where the files in it would be")
    assert [path.relative_to(pictures) for path in pictures.rglob("*")] == [Path("cat")]


def never(*_: object) -> None:
    raise AssertionError("the evaluation has begun")


@pytest.mark.parametrize("flag", ["--json", "--report"])
@pytest.mark.parametrize("below", ["toy.safetensors", "locked"])
def test_what_cannot_be_written_is_one_line_before_the_evaluation(
    toy_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flag: str,
    below: str,
) -> None:
    monkeypatch.setattr("app.commands.evaluate._score_and_record", never)
    (tmp_path / "locked" / "here" / "report.json").mkdir(parents=True)  # a folder: for root, no file is read-only
    target = tmp_path / below / ("here/report.json" if flag == "--json" else "here")
    assert evaluate("--weights", str(toy_weights), flag, str(target)) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("resnet: error: ")
    assert str(tmp_path / below) in line


def test_a_checkpoint_that_cannot_be_replaced_is_told_before_the_evaluation(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("app.commands.evaluate._score_and_record", never)
    toy_weights.with_name(f".{toy_weights.name}.tmp").mkdir()  # for root, no folder is read-only
    assert evaluate("--weights", str(toy_weights), "--record") == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_that_is_there_is_left_until_there_are_scores(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = tmp_path / "old.json", tmp_path / "new" / "scores.json"
    old.write_text("the last time")
    with monkeypatch.context() as patch:
        patch.setattr("app.commands.evaluate._score_and_record", never)
        for path in (old, new):
            with pytest.raises(AssertionError):
                evaluate("--weights", str(toy_weights), "--json", str(path))
    assert old.read_text() == "the last time"
    assert list(new.parent.iterdir()) == []
    assert evaluate("--weights", str(toy_weights), "--json", str(old)) == 0
    assert json.loads(old.read_text())["split"] == "toy test"


def test_a_disk_that_is_full_meanwhile_leaves_the_printed_scores_and_a_line(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.report.write_atomically", full)
    assert evaluate("--weights", str(toy_weights), "--report", str(tmp_path / "report")) == 1
    printed = capsys.readouterr()
    assert "top-1 " in printed.out
    assert "report in" not in printed.out
    assert printed.err == "resnet: error: [Errno 28] No space left on device\n"


def test_the_scores_are_kept_though_nobody_reads_what_is_printed(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("app.commands.evaluate._print", closed)
    with pytest.raises(BrokenPipeError):
        evaluate("--weights", str(toy_weights), "--json", str(tmp_path / "scores.json"))
    assert json.loads((tmp_path / "scores.json").read_text())["split"] == "toy test"


def test_a_pipe_gets_the_scores_whole(toy_weights: Path, tmp_path: Path) -> None:
    """Looking whether it can be written would be its end for whoever reads it."""
    os.mkfifo(tmp_path / "pipe")
    with ThreadPoolExecutor() as pool:
        read = pool.submit((tmp_path / "pipe").read_text)
        assert evaluate("--weights", str(toy_weights), "--json", str(tmp_path / "pipe")) == 0
        assert json.loads(read.result(timeout=60))["split"] == "toy test"


def test_a_device_that_is_not_there_is_one_line_before_anything_is_read(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", never)
    assert evaluate("--weights", str(toy_weights), "--device", "cuda:99") == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("resnet: error: there is no device cuda:99: this machine has ")
    assert len(printed.err.splitlines()) == 1


@pytest.mark.parametrize("raised", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_too_little_memory_to_evaluate_is_said_in_one_line(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], raised: Exception
) -> None:
    def full(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr("model.evaluate.compute_logits", full)
    assert evaluate("--weights", str(toy_weights), "--device", "cpu") == 1
    said = "out of memory: --device cpu may have more, a smaller folder needs less"
    assert capsys.readouterr().err == f"resnet: error: {said}\n"


def test_weights_of_pictures_of_ones_own_are_measured_on_such(
    toy_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()  # the toy test set is in no one's place
    monkeypatch.setattr("model.architecture.STAGE_WIDTHS", (16, 16, 32, 32))
    loaded = checkpoint.load(toy_weights)
    metadata = loaded.metadata.model_copy(update={"dataset": {"name": "pets"}})
    checkpoint.save(toy_weights, metadata, loaded.tensors, loaded.self_test_images, loaded.self_test_probabilities)
    assert evaluate("--weights", str(toy_weights), "--root", str(tmp_path)) == 1
    hint = "; these weights are of 'pets': give its pictures by --data folder:..."
    assert capsys.readouterr().err.endswith(f"{hint}\n")


def test_everything_is_measured_on_the_device_that_is_asked_for(
    toy_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices: list[torch.device] = []
    monkeypatch.setattr("model.hardware.device.pick_device", lambda name: devices.append(name) or torch.device("meta"))
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: devices.append(device) or module)
    assert evaluate("--weights", str(toy_weights), "--device", "cuda:1", "--robustness") == 0
    assert devices == ["cuda:1", torch.device("meta"), torch.device("meta")]
