"""`resnet serve` before there is a server."""

import subprocess
import sys

from tests.conftest import ROOT

TERMINATED_AT_ONCE = """
import os, signal
from app.cli import build_parser
from app.commands import serve

def read_settings(_):
    os.kill(os.getpid(), signal.SIGTERM)

serve.read_settings = read_settings
arguments = build_parser().parse_args(["serve"])
arguments.run(arguments)
"""


def test_sigterm_ends_it_from_the_first_moment_also_as_the_first_process_of_a_container():
    """Which has no default for it."""
    ended = subprocess.run([sys.executable, "-c", TERMINATED_AT_ONCE], check=False, cwd=ROOT)
    assert ended.returncode == 0
