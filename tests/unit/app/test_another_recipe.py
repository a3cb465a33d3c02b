"""`resnet train` into the folder of a run: the same one goes on, another one is refused before pictures are read."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.cli import build_parser
from model.training.distributed import World
from tests.conftest import logging_put_back
from tests.unit.app.toy_runs import toy_dataset, train

pytestmark = pytest.mark.usefixtures("tiny_runs")


def train_fitted(out: Path, *flags: str) -> int:
    """Train with the preset's batch, rate and held-out part, unless `flags` say otherwise."""
    fixed = ["train", "--out", str(out), "--phases", "8:1", "--device", "cpu", "--no-report"]
    arguments = build_parser().parse_args([*fixed, *flags])
    return arguments.run(arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: None) -> Path:
    """Train once for all tests that go on from a finished run, each from a copy of its own."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with logging_put_back():
        assert train(out, "--no-report") == 0
    return out


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "run")


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


def test_a_run_goes_on_with_its_preset_where_another_one_is_the_machines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such as where the GPU has gone that it was begun on."""
    assert train_fitted(tmp_path, "--preset", "best") == 0
    assert json.loads((tmp_path / "settings.json").read_text())["preset"] == "best"
    capsys.readouterr()
    assert train_fitted(tmp_path) == 0
    said = capsys.readouterr().err
    assert f"preset best, as the run in {tmp_path} was begun with; here it would be cpu\n" in said
    assert "this run is finished: nothing is left to do\n" in said
    assert train_fitted(tmp_path, "--preset", "cpu") == 1
    assert "another run (alternating_flip true, not false; cutmix 0.5, not 0.0; " in capsys.readouterr().err


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
    for _ in range(2):
        assert train_fitted(tmp_path / "fitted", *(flag.format(run=run) for flag in flags)) == 0


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory, tiny_data: None) -> Path:
    """Make a run as three processes would fit it, or what fitted batches before: one has batches of 8 now."""
    out = tmp_path_factory.mktemp("fitted") / "six"
    with logging_put_back():
        assert train_fitted(out, "--batch-size", "6") == 0
    return out


def test_a_run_keeps_the_batch_that_other_processes_have_fitted(six: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert train_fitted(six) == 0
    said = capsys.readouterr().err
    assert f"batch_size 6, as the run in {six} has it\n" in said
    assert "instead of 0.1, to suit the batch\n" in said
    assert "this run is finished: nothing is left to do\n" in said


def test_processes_that_cannot_share_the_batch_of_a_run_are_refused_before_a_picture_is_read(
    six: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: pytest.fail("the pictures are read"))
    monkeypatch.setattr(
        "model.training.distributed.join_world", lambda device: nullcontext((World(rank=0, size=4), device))
    )
    capsys.readouterr()
    assert train_fitted(six) == 1
    said = f"{six} holds a run with a batch of 6, which 4 processes cannot share equally: take another number of "
    more = "processes, or give another --out, with a --batch-size or without"
    assert capsys.readouterr().err == f"resnet: error: {said}{more}\n"


def test_a_run_of_other_and_fewer_pictures_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are not told that they are too few for its batch, which nobody asked for."""
    assert train_fitted(tmp_path, "--batch-size", "64") == 0
    fewer = toy_dataset(split="test")
    monkeypatch.setattr("model.datasets.load_dataset", lambda *_, **__: fewer)
    assert train_fitted(tmp_path) == 1
    said = capsys.readouterr().err
    assert f"{tmp_path} holds another run (" in said
    assert "other images" in said
