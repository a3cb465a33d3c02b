"""The `resnet` command, whatever it is that it runs."""

import io
import os
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError

import pytest

from app import cli, engine
from app.cli import COMMANDS, build_parser, main
from app.release import release
from tests.conftest import ROOT
from tests.fakes import Cats


@pytest.mark.parametrize(
    ("encoding", "name", "shown"),
    [
        ("ascii", "grün ☃.png", r"gr\xfcn \u2603.png"),
        ("utf-8", "grün ☃.png", "grün ☃.png"),
        ("utf-8", os.fsdecode(b"\xff.png"), r"\udcff.png"),
    ],
)
def test_a_name_that_the_terminal_has_no_letters_for_is_shown_as_escapes(tmp_path, monkeypatch, encoding, name, shown):
    class Cat(Cats):
        def __init__(self):
            self.card = {"classes": ["猫"], "input_size": 32}

        def run(self, images):
            return super().run(images)[:, :1]

    (tmp_path / name).write_bytes((ROOT / "examples" / "cat.png").read_bytes())
    printed = io.BytesIO()
    with monkeypatch.context() as patch:
        patch.setattr(engine, "load_engine", lambda _settings: Cat())
        patch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding=encoding))
        patch.setattr(sys, "argv", ["resnet", "predict", str(tmp_path / name)])
        with pytest.raises(SystemExit) as ended:
            main()
        sys.stdout.flush()
        assert ended.value.code == 0
        label = r"\u732b" if encoding == "ascii" else "猫"
        assert printed.getvalue().decode(encoding) == f"{tmp_path}/{shown}: {label} 75.0%\n"


@pytest.mark.parametrize(
    ("revision", "more"), [(None, ""), ("unknown", ""), (" ", ""), ("0a1b2c3", " (revision 0a1b2c3)")]
)
def test_it_says_which_release_it_is_of_which_revision(monkeypatch, capsys, revision, more):
    if revision is not None:
        monkeypatch.setenv("RESNET_REVISION", revision)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    monkeypatch.setattr(sys, "argv", ["resnet", "--version"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    assert capsys.readouterr().out == f"resnet {project['version']}{more}\n"


def test_a_folder_that_nothing_has_installed_has_no_release(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("app.release.version", missing)
    assert release() == "unknown"


@pytest.mark.parametrize(("processes", "number"), [(None, 143), ("1", 143), ("", 143), ("2", -signal.SIGTERM)])
def test_of_several_processes_each_ends_at_once_whatever_it_waits_for(processes, number):
    """A handler in Python would not run in a process that waits within NCCL."""
    code = (
        "import os, signal, sys, app.cli as cli\n"
        "cli.build_parser = lambda: signal.raise_signal(signal.SIGTERM)\n"
        "sys.argv = ['resnet', 'train']\n"
        "cli.main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "WORLD_SIZE"}
    environment |= {} if processes is None else {"WORLD_SIZE": processes}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=False)
    assert ended.returncode == number, ended.stderr


@pytest.mark.parametrize(("status", "number"), [(0, 128 + signal.SIGPIPE), (1, 1)])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_read_enough_is_no_error(status, number, unbuffered):
    code = (
        "import argparse, app.cli as cli\n"
        "def run(_):\n"
        "    print('a line')\n"
        f"    return {status}\n"
        "words = argparse.Namespace(run=run)\n"
        "cli.build_parser = lambda: argparse.Namespace(parse_args=lambda: words)\n"
        "cli.main()\n"
    )
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    expected = 128 + signal.SIGPIPE if unbuffered else number  # then printing ends the command
    assert (ended.returncode, ended.stderr) == (expected, b"")


def test_a_containers_first_process_which_would_ignore_sigterm_ends_by_a_handler(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert cli._ends_by_default()
    monkeypatch.setattr(cli.os, "getpid", lambda: 1)
    assert not cli._ends_by_default()


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained_by_more_than_its_default(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")  # a flag a line
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    options = capsys.readouterr().out.partition("options:")[2].partition("\n\n")[0]
    lines = [line.split("  ") for line in options.replace("\n        ", " ").strip().splitlines()]
    assert len(lines) > 1
    assert [line for line in lines if len(line) < 2 or line[-1].strip().startswith("[")] == []


def test_what_a_checkpoint_is_for_depends_on_the_command(capsys):
    assert "checkpoint to serve" in help_of("serve", capsys)
    assert "checkpoint to measure" in help_of("evaluate", capsys)
    assert "checkpoint to classify with" in help_of("predict", capsys)


def test_the_help_of_training_shows_how_to_train_on_a_folder(capsys):
    assert "resnet train --data folder:pictures --init-from weights/" in help_of("train", capsys)


def test_no_command_loads_the_metrics_library():
    code = (
        "import sys; from app.cli import build_parser; build_parser()\n"
        "print(sorted({'prometheus_client', 'app.telemetry'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
