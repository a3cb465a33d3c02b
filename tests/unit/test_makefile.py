"""What `make` measures is what the record's name says."""

import re
import shutil
import subprocess

import pytest

from tests.conftest import ROOT


def test_each_record_of_the_engine_is_of_the_device_in_its_name():
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    named = {line: re.search(r"engine_(\w+)\.json$", line) for line in lines if "bench engine" in line}
    assert {found[1] for found in named.values()} == {"cpu", "cuda"}
    for line, found in named.items():
        assert f"--device {found[1]} " in line


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_each_target_is_listed_in_one_line_that_a_terminal_shows_whole():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^([a-z-]+):", makefile, re.M)
    printed = subprocess.run(["make", "--no-print-directory"], cwd=ROOT, check=True, capture_output=True, text=True)
    *lines, _note = printed.stdout.splitlines()
    assert [line.split()[0] for line in lines] == targets
    assert [line for line in lines if len(line) > 120] == []


def test_what_needs_no_data_set_is_measured_and_shown_before_what_does():
    """A clone has none: make stops at the first step that fails."""
    recipe = (ROOT / "Makefile").read_text().partition("\nbench-load:")[2].partition("\n\n")[0]
    declared, *steps = recipe.splitlines()
    needing = ["--root" in step for step in steps]
    assert needing[:-1] == sorted(needing[:-1])
    assert any(needing)
    shown = [number for number, step in enumerate(steps) if "readme_figures" in step]
    assert shown == [needing.index(True) - 1, len(steps) - 1]
    assert "needs CIFAR-10 (DATA=)" in declared
