import subprocess
import sys

import pytest

from tests.conftest import ROOT

FREED = """
from pathlib import Path
import ctypes
from app.memory import give_back_memory

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
blocks = [libc.malloc(1 << 16) for _ in range(1000)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 16)
last = libc.malloc(1 << 16)  # above them all: freeing them shrinks nothing
for block in blocks:
    libc.free(ctypes.c_void_p(block))
before = resident()
give_back_memory()
print(before - resident())
"""

LARGE = """
from pathlib import Path
import ctypes
from app.memory import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p

def block(size):
    place = libc.malloc(size)
    ctypes.memset(place, 1, size)
    return ctypes.c_void_p(place)

give_back_large_blocks()
libc.free(block(20 << 20))  # from now on glibc would take blocks up to this size from its heap
before = resident()
blocks = []
for _ in range(8):
    blocks.append(block(10 << 20))
    block(200 << 10)  # keeps the heap from shrinking to below it
for one in blocks:
    libc.free(one)
print(resident() - before)
"""

COMPILER = """
import sys
from app.settings import Settings
from model import checkpoint
checkpoint.load(Settings().weights).network()
print(sorted({"torch._dynamo", "torch._inductor", "sympy", "triton"} & sys.modules.keys()))
"""


def output_of(code):
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_freed_memory_goes_back_to_the_system():
    assert int(output_of(FREED)) > 50 << 20


@pytest.mark.skipif(sys.platform != "linux", reason="glibc only")
def test_large_blocks_go_back_to_the_system_when_they_are_freed():
    assert int(output_of(LARGE)) < 5 << 20


def test_loading_a_checkpoint_does_not_load_torchs_compiler():
    assert output_of(COMPILER) == "[]\n"
