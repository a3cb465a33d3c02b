import json
from pathlib import Path

import torch

from model.run_folder import RunFolder


def test_lines_beyond_an_epoch_are_forgotten_and_broken_ones_with_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "deep" / "run")
    folder.begin({"seed": 1})
    for epoch in (1, 2, 3):
        folder.append_metrics({"epoch": epoch})
    with folder.metrics.open("a") as file:
        file.write('{"epo')
    folder.forget_metrics_after(2)
    assert [json.loads(line) for line in folder.metrics.read_text().splitlines()] == [{"epoch": 1}, {"epoch": 2}]


def test_state_comes_back(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_state(torch.device("cpu")) is None
    folder.save_state({"epoch": 3, "weights": {"w": torch.arange(3)}})
    state = folder.load_state(torch.device("cpu"))
    assert state is not None
    assert state["epoch"] == 3
    assert torch.equal(state["weights"]["w"], torch.arange(3))


def test_settings_are_json(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin({"seed": 1})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}
