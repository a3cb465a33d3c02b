"""The progress of `resnet train` on 112 pictures of noise, as a person sees it: a bar, or lines in a log."""

import fcntl
import os
import pty
import re
import struct
import sys
import termios
import threading
from contextlib import nullcontext
from pathlib import Path

import pytest

from app.commands.progress import ProgressBar, ProgressLines
from model.datasets import load_dataset
from model.training.distributed import World
from model.training.errors import TrainingError
from tests.pictures import write_folder
from tests.unit.app.toy_runs import STEPS, crash_in_epoch, train

pytestmark = pytest.mark.usefixtures("tiny_runs")


class Terminal:
    """A pseudo-terminal as standard error; `text` is what a person saw, updates of the bar as lines."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._file = os.fdopen(slave, "w", encoding="utf-8")
        self._bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        monkeypatch.setattr(sys, "stderr", self._file)

    def _read(self) -> None:
        try:
            while data := os.read(self._master, 65536):
                self._bytes += data
        except OSError:  # Linux says EIO when the other side is closed
            pass

    def text(self) -> str:
        self._file.close()
        self._reader.join()
        os.close(self._master)
        return self._bytes.decode().replace("\r", "\n")


BAR = re.compile(r"(\d+)/(\d+) steps \[[\d:]+<[\d:?]+, loss=\d+\.\d{3}, accuracy=\d+\.\d%, images/s=\d+\]")


def bar_updates(text: str) -> list[tuple[int, int]]:
    return [(int(match[1]), int(match[2])) for match in map(BAR.search, text.splitlines()) if match]


@pytest.mark.parametrize(("columns", "rows"), [(120, 40), (0, 0)], ids=["known size", "unknown size"])
def test_a_terminal_shows_a_bar_with_loss_accuracy_and_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int, rows: int
) -> None:
    with monkeypatch.context() as patch:
        terminal = Terminal(patch, columns, rows)
        assert train(tmp_path, "--no-report") == 0
        text = terminal.text()
    updates = bar_updates(text)
    assert updates[-1] == (2 * STEPS, 2 * STEPS)
    assert {total for _, total in updates} == {2 * STEPS}
    assert [step for step, _ in updates] == sorted(step for step, _ in updates)
    logged = [line for line in text.splitlines() if " epoch=" in line]
    assert len(logged) == 2
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in logged)  # above the bar, not behind it


def test_the_bar_of_a_resumed_run_starts_where_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_in_epoch(2, patch)
        assert train(tmp_path) == 1
    with monkeypatch.context() as patch:
        terminal = Terminal(patch, 120, 40)
        assert train(tmp_path, "--no-report") == 0
        text = terminal.text()
    steps = [int(step) for step in re.findall(r"(\d+)/48 steps", text)]
    assert steps[0] == STEPS + 1
    assert steps[-1] == 2 * STEPS
    assert "| 0/" not in text


def test_the_bar_shows_the_runs_own_estimate(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        terminal = Terminal(patch, 120, 40)
        bar = ProgressBar()
        bar.show_step(1, 100, {"loss": 1.0, "accuracy": 0.5, "images_per_s": 10.0, "seconds_left": 3725.0})
        bar.close()
        text = terminal.text()
    assert "1/100 steps [00:00<1:02:05, loss=1.000, accuracy=50.0%, images/s=10]" in text


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_one_draws_the_bar_of_the_pictures_that_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise TrainingError("here")

    pictures = write_folder(tmp_path / "pictures", 12)
    monkeypatch.setattr("model.datasets.load_dataset", load_dataset)
    monkeypatch.setattr("model.training.distributed.join_world", lambda device: nullcontext((World(rank, 2), device)))
    monkeypatch.setattr("model.train.Trainer", stop)
    with monkeypatch.context() as patch:
        terminal = Terminal(patch, 120, 40)
        assert train(tmp_path / "run", "--no-report", "--data", f"folder:{pictures}") == 1
        text = terminal.text()
    for bar in ("reading:", "decoding:"):
        assert (bar in text) == (rank == 0)


def test_without_a_terminal_there_are_plain_lines(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path, "--no-report") == 0
    printed = capfd.readouterr()
    assert printed.out == f"{tmp_path / 'checkpoint.safetensors'}\n"
    assert not BAR.search(printed.err)
    assert "\r" not in printed.err
    lines = [line for line in printed.err.splitlines() if " epoch=" in line]
    for epoch, line in zip((1, 2), lines, strict=True):
        assert re.search(rf"epoch={epoch} epochs=2 .*loss=[\d.]+ accuracy=[\d.]+ images_per_s=", line)
    assert re.search(r", about \d+ s left$", lines[0])
    assert "left" not in lines[1]
    assert "images/s" not in printed.err  # such a run takes no minute


def test_without_a_terminal_a_long_epoch_has_lines_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ProgressLines, "every_s", 0.0)
    assert train(tmp_path, "--no-report") == 0
    found = re.findall(
        r"step (\d+) of (\d+) \((\d+\.\d)%\): loss \d+\.\d{3}, accuracy \d+\.\d%, \d+ images/s, about \d+ s left\n",
        capfd.readouterr().err,
    )
    within = [step for step in range(2, 2 * STEPS) if step % STEPS]
    assert found == [(str(step), str(2 * STEPS), f"{100 * step / (2 * STEPS):.1f}") for step in within]
