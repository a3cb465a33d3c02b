import json
from pathlib import Path

import pytest

from app.cli import build_parser
from benchmarks.training import RUNS, commands_of, record_of


@pytest.mark.parametrize("name", RUNS)
def test_commands_are_ones_that_the_command_line_takes(name: str) -> None:
    for command in commands_of(name, Path("data")):
        build_parser().parse_args(command[1:])


def test_each_run_of_a_chain_starts_from_the_one_before_and_the_last_alone_is_evaluated() -> None:
    first, *later = commands_of("shipped", Path("data"))
    assert "--init-from" not in first
    for number, command in enumerate(later, 1):
        assert command[command.index("--init-from") + 1] == f"runs/shipped-{number}/checkpoint.safetensors"
    assert ["--no-report" in command for command in [first, *later]] == [*[True] * len(later), False]


def test_record_adds_up_the_runs(tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, seconds in zip(folders, (10.0, 5.0), strict=True):
        folder.mkdir()
        (folder / "settings.json").write_text(json.dumps({"recipe": {"seed": 7}, "device": "cpu"}))
        lines = [{"epoch": 1, "seconds": seconds / 2}, {"epoch": 2, "seconds": seconds}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folders[1] / "evaluation.json").write_text(json.dumps({"top1": 0.9, "ece": 0.01, "version": "0123"}))
    record = record_of([["resnet", "train"], ["resnet", "train", "--seed", "1"]], folders)
    assert (record["top1"], record["ece"], record["training_seconds"]) == (0.9, 0.01, 15.0)
    assert [run["command"] for run in record["runs"]] == ["resnet train", "resnet train --seed 1"]
    assert [(run["epochs"], run["seed"], run["device"]) for run in record["runs"]] == [(2, 7, "cpu")] * 2
