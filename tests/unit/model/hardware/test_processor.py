"""Which instructions the processor says that it has."""

import platform
import sys

import pytest

from model.hardware.processor import processor_flags

CPU_INFO = """processor\t: 0
model name\t: Some Processor
flags\t\t: fpu sse avx2 amx_bf16
bugs\t\t: spectre_v1

processor\t: 1
flags\t\t: fpu sse
"""


def test_the_flags_are_those_of_the_first_core(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text(CPU_INFO)
    assert processor_flags(info) == {"fpu", "sse", "avx2", "amx_bf16"}


@pytest.mark.parametrize("text", ["", "processor: 0\nFeatures: fp asimd\n"])
def test_a_processor_that_does_not_say_so_has_none(tmp_path, text):
    info = tmp_path / "cpuinfo"
    assert processor_flags(info) == frozenset()
    info.write_text(text)
    assert processor_flags(info) == frozenset()


@pytest.mark.skipif(sys.platform != "linux" or platform.machine() != "x86_64", reason="only Linux says it so")
def test_this_one_has_what_all_of_its_kind_have():
    assert "sse2" in processor_flags()
