"""`resnet serve` before there is a server, and other commands that are ended early."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

TERMINATED_AT_ONCE = """
import os, signal, sys
import app.cli

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs in the background has inherited another

def import_module(_):
    os.kill(os.getpid(), signal.NUMBER)

app.cli.import_module = import_module
sys.argv = ["resnet", "serve"]
app.cli.main()
"""


@pytest.mark.parametrize("number", ["SIGTERM", "SIGINT"])
def test_a_signal_ends_it_from_the_first_moment_also_as_the_first_process_of_a_container(number):
    """Which has no default for it: not even the commands are imported before."""
    code = TERMINATED_AT_ONCE.replace("NUMBER", number)
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_reload_that_is_asked_for_at_the_first_moment_does_not_end_it():
    code = TERMINATED_AT_ONCE.replace("NUMBER)", "SIGHUP)\n    os._exit(3)")
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stderr) == (3, b"")


def test_the_end_of_its_terminal_ends_it_also_at_the_first_moment():
    gone = "os.dup2(os.open(os.devnull, os.O_RDWR), 0)\n    "
    code = TERMINATED_AT_ONCE.replace("os.kill", f"{gone}os.kill").replace("NUMBER)", "SIGHUP)\n    os._exit(3)")
    ours, terminal = os.openpty()
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, stdin=terminal, capture_output=True)
    os.close(ours)
    os.close(terminal)
    assert (ended.returncode, ended.stderr) == (0, b"")


WHILE_IMPORTING = """
import os, signal, sys, types
import app.cli

class Serving(types.ModuleType):
    def __getattr__(self, _):
        CLOSE
        os.kill(os.getpid(), signal.SIGHUP)
        os._exit(3)

sys.modules["app.launch"] = Serving("app.launch")
sys.argv = ["resnet", "serve"]
app.cli.main()
"""


@pytest.mark.parametrize(("close", "code"), [("os.dup2(os.open(os.devnull, os.O_RDWR), 0)", 0), ("pass", 3)])
def test_the_end_of_its_terminal_ends_it_while_it_imports_the_service_and_a_reload_does_not(close, code):
    ours, terminal = os.openpty()
    script = WHILE_IMPORTING.replace("CLOSE", close)
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT, stdin=terminal, capture_output=True)
    os.close(ours)
    os.close(terminal)
    assert ended.returncode == code, ended.stderr


RELOADED_AT_ONCE = """
import os, signal, sys
import app.cli, app.launch

def asked_while(*given):
    os.kill(os.getpid(), signal.SIGHUP)
    return undisturbed(*given)

def start(self):
    os._exit(3 if self._reload_follows else 4)

undisturbed = STEP
STEP = asked_while
app.launch.EngineService.start = start
sys.argv = ["resnet", "serve", "--port", "PORT"]
app.cli.main()
"""


@pytest.mark.parametrize("step", ["app.cli.build_parser", "app.launch.create_service"])
def test_a_reload_that_is_asked_for_before_it_serves_follows(own_port, step):
    script = RELOADED_AT_ONCE.replace("PORT", str(own_port)).replace("STEP", step)
    ended = subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT, capture_output=True)
    assert ended.returncode == 3, ended.stderr


@pytest.mark.parametrize("command", ["train", "evaluate", "predict"])
def test_ctrl_c_ends_other_commands_in_one_line_wherever_it_comes(command):
    code = TERMINATED_AT_ONCE.replace("NUMBER", "SIGINT").replace("serve", command)
    ended = subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, capture_output=True)
    assert (ended.returncode, ended.stderr) == (130, b"resnet: interrupted\n")


CLOSED = """
import argparse, os, pathlib, subprocess, sys
import app.cli

parser = argparse.ArgumentParser()

def run(_arguments):
    print("nobody hears it")
    print("nor that", file=sys.stderr)
    child = subprocess.run(["sh", "-c", "read line; echo x && echo y >&2"], check=False)
    files = [os.readlink(f"/proc/self/fd/{number}") for number in range(3)]
    pathlib.Path(sys.argv[1]).write_text(" ".join([*files, repr(sys.stdin.read()), str(child.returncode)]))
    return 0

parser.add_argument("path")
parser.set_defaults(run=run)
app.cli.build_parser = lambda: parser
app.cli.main()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="open files are seen in /proc")
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&- 2>&-", ">&-", ""])
def test_standard_files_that_are_closed_lead_nowhere_rather_than_to_what_is_opened_next(tmp_path, closed):
    seen = tmp_path / "seen"
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", CLOSED, seen]
    null = subprocess.DEVNULL
    ended = subprocess.run(command, check=False, cwd=ROOT, stdin=null, stdout=null, stderr=null)
    assert (ended.returncode, seen.read_text()) == (0, "/dev/null /dev/null /dev/null '' 0")


WORDY = """
import argparse
import app.cli

parser = argparse.ArgumentParser()
parser.set_defaults(run=lambda _arguments: [print("line") for _ in range(100_000)] and 0)
app.cli.build_parser = lambda: parser
app.cli.main()
"""


def test_a_reader_that_has_read_enough_ends_a_command_without_a_word():
    with subprocess.Popen(
        [sys.executable, "-c", WORDY], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ended:
        assert ended.stdout.readline() == b"line\n"
        ended.stdout.close()
        assert ended.stderr.read() == b""
    assert ended.returncode == 141
