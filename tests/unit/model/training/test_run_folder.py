import json
from pathlib import Path

import pytest
import torch

from model.checkpoint import write_atomically
from model.training.errors import TrainingError
from model.training.run_folder import RunFolder, differences

STATE = {
    "recipe": "{}",
    "epoch": 3,
    "seconds": 1.5,
    "tally": {"loss_sum": torch.tensor(0.0), "correct": torch.tensor(0.0), "steps": 0, "seconds": 0.0},
    "updates": 9,
    "network": {},
    "average": {},
    "optimiser": {},
}


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
    folder.save_state(STATE | {"network": {"w": torch.arange(3)}})
    state = folder.load_state(torch.device("cpu"))
    assert state is not None
    assert state["epoch"] == 3
    assert torch.equal(state["network"]["w"], torch.arange(3))


def test_settings_are_json(tmp_path: Path) -> None:
    RunFolder(tmp_path).begin({"seed": 1})
    assert json.loads((tmp_path / "settings.json").read_text()) == {"seed": 1}


def test_the_preset_is_a_runs_that_has_a_state(tmp_path: Path) -> None:
    """Without one it is begun anew, with what suits the machine."""
    folder = RunFolder(tmp_path)
    folder.begin({"recipe": {}, "preset": "best"})
    assert folder.preset() is None
    folder.save_state(STATE)
    assert folder.preset() == "best"
    for settings in ({"recipe": {}}, {"recipe": {}, "preset": ["best"]}):  # of an older release, and of nobody
        folder.begin(settings)
        assert folder.preset() is None
    folder.settings.unlink()
    assert folder.preset() is None


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", None])
def test_a_damaged_state_is_said_in_one_line(tmp_path: Path, content: bytes | None) -> None:
    folder = RunFolder(tmp_path)
    folder.save_state({"epoch": 3})
    folder.state.write_bytes(folder.state.read_bytes()[:-100] if content is None else content)
    with pytest.raises(TrainingError, match=r"state\.pt is damaged: remove it to begin anew"):
        folder.load_state(torch.device("cpu"))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory."),
        PermissionError(13, "Permission denied"),
    ],
)
def test_a_state_that_there_is_no_memory_for_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Who removed it, as a damaged one is to be, would lose the run."""

    def load(*_: object, **__: object) -> None:
        raise error

    folder = RunFolder(tmp_path)
    folder.save_state(STATE)
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)) as raised:
        folder.load_state(torch.device("cpu"))
    assert raised.value is error


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {"model": {}, "optimizer": {}, "epoch": 3},
        {name: value for name, value in STATE.items() if name != "optimiser"},
        STATE | {"epoch": "three"},
        STATE | {"tally": {}},
        STATE | {"recipe": "pancakes"},
        STATE | {"recipe": "[]"},
    ],
)
def test_what_is_no_state_is_none(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(TrainingError, match="no state of a run"):
        RunFolder(tmp_path).load_state(torch.device("cpu"))


def test_a_folder_is_one_processs_at_a_time(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    with first.taken(), pytest.raises(TrainingError, match="another process trains in"), second.taken():
        pass
    with RunFolder(tmp_path / "run").taken():
        pass


def test_a_file_system_without_locks_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_arguments: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with RunFolder(tmp_path).taken():
        pass


def test_how_runs_differ_is_said_in_words() -> None:
    saved = {"batch_size": 4, "images": "a", "init_from": None, "same": [1]}
    wanted = {"batch_size": 8, "images": "b", "init_from": "x", "normalisation": [], "same": [1]}
    assert differences(saved, wanted) == (
        "batch_size 4, not 8; other images; another --init-from; another mean and std"
    )


def test_a_file_is_exchanged_for_another_and_never_written_over(tmp_path: Path) -> None:
    """A crash, or a reader, in the midst of it finds all of the old one."""
    path, old = tmp_path / "file", tmp_path / "old"
    write_atomically(path, b"old")
    old.hardlink_to(path)
    write_atomically(path, b"new")
    assert (path.read_bytes(), old.read_bytes()) == (b"new", b"old")
    assert sorted(tmp_path.iterdir()) == [path, old]


def test_a_broken_line_in_the_midst_of_the_metrics_moves_no_other(tmp_path: Path) -> None:
    """What a power cut leaves: lines are appended without waiting for the disk."""
    folder = RunFolder(tmp_path)
    folder.metrics.write_text('{"epoch": 1}\n{"epo\n{"epoch": 3}\n{"epoch": 4}\n')
    folder.forget_metrics_after(3)
    assert folder.metrics.read_text() == '{"epoch": 1}\n{"epoch": 3}\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("settings.json", '{"theme": "dark"}'),
        ("settings.json", "theme = dark"),
        ("settings.json", '["recipe"]'),
        ("settings.json", '{"recipe": "pancakes"}'),
        ("settings.json", "[" * 100_000),
        ("metrics.jsonl", '{"loss": 1.0}\n'),
        ("metrics.jsonl", "some notes\n"),
        ("timing.json", '{"breakfast": "at eight"}'),
        ("evaluation.json", '{"mine": 1}'),
        ("report.json", '{"mine": 2}'),
    ],
)
@pytest.mark.parametrize("begun", [True, False])
def test_files_of_no_run_are_not_written_over(tmp_path: Path, name: str, content: str, begun: bool) -> None:
    folder = RunFolder(tmp_path)
    if begun:
        folder.begin({"recipe": {}})
    (tmp_path / name).write_text(content)
    with pytest.raises(TrainingError, match=rf"{name} is of no run, and would be written over: give another --out"):
        folder.check_writable()
    folder.save_state({})
    folder.check_writable()  # beside a state they are a run's, such as those that a crash has broken


@pytest.mark.parametrize(
    "name", ["learning_curves.png", "confusion_matrix.png", "reliability_diagram.png", "most_wrong.png"]
)
def test_pictures_of_no_run_are_not_drawn_over(tmp_path: Path, name: str) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / name).write_bytes(b"of a thesis")
    with pytest.raises(TrainingError, match=rf"{name} is of no run, and would be written over"):
        folder.check_ours()
    folder.begin({"recipe": {}})
    folder.check_ours()


def test_what_another_program_measured_each_epoch_is_no_runs_without_its_settings(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_metrics({"epoch": 1})
    with pytest.raises(TrainingError, match=r"metrics\.jsonl is of no run"):
        folder.check_ours()


@pytest.mark.parametrize("end", ["", "{", '{"epoch": 2, "lo', "\0\0\0"])
def test_what_a_crash_leaves_before_the_first_state_is_a_runs(tmp_path: Path, end: str) -> None:
    folder = RunFolder(tmp_path)
    folder.check_ours()
    folder.begin({"recipe": {"seed": 1}})
    folder.append_metrics({"epoch": 1})
    folder.write_json("timing.json", {"training": 1.0, "total": 2.0})
    folder.metrics.write_text(folder.metrics.read_text() + end)
    folder.check_writable()
