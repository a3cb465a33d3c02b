"""`resnet train` into the folder of a run: the same one goes on, another one is refused before pictures are read."""

from pathlib import Path

import pytest

from app.cli import build_parser
from tests.unit.app.toy_runs import train

pytestmark = pytest.mark.usefixtures("tiny_runs")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    assert train(tmp_path / "run", "--no-report") == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("flags", "differing"),
    [
        (["--seed", "1"], "seed 0, not 1"),
        (["--phases", "8:3", "--no-flip"], "flip true, not false; phases [[8, 2]], not [[8, 3]]"),
        (["--batch-size", "8"], "batch_size 4, not 8; learning_rate 0.003125, not 0.00625"),
        (["--hold-out", "17"], "hold_out 16, not 17"),
        (["--init-from", "{run}/checkpoint.safetensors"], "another --init-from"),
    ],
)
def test_another_recipe_is_refused_before_a_picture_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], differing: str
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: pytest.fail("the pictures are read"))
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    capsys.readouterr()
    assert train(run, "--no-report", *(flag.format(run=run) for flag in flags)) == 1
    assert capsys.readouterr().err == f"resnet: error: {run} holds another run ({differing}): give another --out\n"
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_a_damaged_state_is_told_of_before_a_picture_is_read(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: pytest.fail("the pictures are read"))
    (run / "state.pt").write_bytes(b"")
    assert train(run, "--no-report") == 1
    assert "state.pt is damaged: remove it to begin anew" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [[], ["--init-from", "{run}/checkpoint.safetensors"]])
def test_what_depends_on_the_pictures_makes_no_other_run(run: Path, tmp_path: Path, flags: list[str]) -> None:
    """Batch, rate and held-out part are fitted to them, where no flag says what they are."""
    out = tmp_path / "fitted"
    fixed = ["train", "--out", str(out), "--phases", "8:1", "--device", "cpu", "--no-report"]
    arguments = build_parser().parse_args([*fixed, *(flag.format(run=run) for flag in flags)])
    assert arguments.run(arguments) == 0
    assert arguments.run(arguments) == 0
