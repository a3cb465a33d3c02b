import subprocess
import sys

from app import cli
from tests.conftest import ROOT
from tools.requirements import NEVER_ON_A_CPU, requirements

TEXT = """
[project]
dependencies = ["numpy>=2", "torch>=2.10", "torchvision", "torchmetrics", "tqdm; python_version > '3'"]
"""


def test_a_cpu_does_without_torch_and_with_all_else():
    assert requirements(TEXT, cpu_only=True) == ["numpy>=2", "torchmetrics"]
    assert len(requirements(TEXT, cpu_only=False)) == 5


def test_the_command_reads_ours_and_needs_nothing_installed():
    def lines(*flags):
        command = [sys.executable, "-I", "-S", "tools/requirements.py", *flags]
        return subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()

    left_out = {line.split(">")[0] for line in set(lines()) - set(lines("--cpu-only"))}
    assert left_out == NEVER_ON_A_CPU == cli.NEVER_ON_A_CPU
