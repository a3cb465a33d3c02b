"""What `make` measures is what the record's name says."""

import re

from tests.conftest import ROOT


def test_each_record_of_the_engine_is_of_the_device_in_its_name():
    lines = (ROOT / "Makefile").read_text().replace("\\\n", "").splitlines()
    named = {line: re.search(r"engine_(\w+)\.json$", line) for line in lines if "bench engine" in line}
    assert {found[1] for found in named.values()} == {"cpu", "cuda"}
    for line, found in named.items():
        assert f"--device {found[1]} " in line
