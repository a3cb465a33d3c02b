import re
import subprocess
import sys

import pytest

from app import cli
from tests.conftest import ROOT
from tools.requirements import FOR_TRAINING_AND_GPUS, requirements

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
    assert left_out == FOR_TRAINING_AND_GPUS == cli.FOR_TRAINING_AND_GPUS


@pytest.mark.parametrize(("gpu", "without_torch"), [("", True), ("/dev/nvidia0", False)])
def test_make_serve_leaves_torch_out_where_there_is_no_gpu(tmp_path, gpu, without_torch):
    command = ["make", "--dry-run", "serve", f"VENV={tmp_path}/venv", f"GPU={gpu}"]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert ("requirements.py --cpu-only" in said) is without_torch
    assert ("'.[dev]'" in said) is not without_torch


@pytest.mark.parametrize(
    ("files", "with_torch"),
    [
        ([], False),
        (["dev/nvidia0"], True),
        (["dev/nvmap"], True),
        (["dev/kfd"], False),
        (["dev/dxg"], False),
        (["dev/dxg", "usr/lib/wsl/lib/libcuda.so.1"], True),
    ],
)
def test_only_gpus_that_the_usual_torch_can_use_bring_it(tmp_path, files, with_torch):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    makefile = tmp_path / "Makefile"
    makefile.write_text(re.sub(r"/(?=dev/|usr/)", f"{tmp_path}/", (ROOT / "Makefile").read_text()))
    command = ["make", "--dry-run", f"--file={makefile}", "serve", f"VENV={tmp_path}/venv"]
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    assert ("'.[dev]'" in said) is with_torch


def test_make_serve_takes_what_is_installed_completely(tmp_path):
    (tmp_path / ".installed").touch()
    command = ["make", "--dry-run", "serve", f"VENV={tmp_path}", "GPU="]
    assert "install" not in subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
