"""`resnet serve` before there is a server."""

import subprocess
import sys

from tests.conftest import ROOT

TERMINATED_AT_ONCE = """
import os, signal, sys
import app.cli

def import_module(_):
    os.kill(os.getpid(), signal.SIGTERM)

app.cli.import_module = import_module
sys.argv = ["resnet", "serve"]
app.cli.main()
"""


def test_sigterm_ends_it_from_the_first_moment_also_as_the_first_process_of_a_container():
    """Which has no default for it: not even the commands are imported before."""
    ended = subprocess.run([sys.executable, "-c", TERMINATED_AT_ONCE], check=False, cwd=ROOT)
    assert ended.returncode == 0
