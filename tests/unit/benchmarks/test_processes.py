import subprocess
import sys

from benchmarks import processes

GRANDCHILD = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'input()']); print(flush=True); input()"
BUSY = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True); input()"
HOLDS = "x = b'1' * 50_000_000; print(flush=True); input()"


def start(code):
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process


def finish(process):
    everything = processes.tree(process.pid)
    processes.end(everything, patience_s=0)
    return everything


def test_a_tree_has_children_of_children_and_can_be_ended():
    everything = finish(start(GRANDCHILD))
    assert len(everything) == 2
    assert processes.memory_bytes(everything) == 0


def test_processor_time_and_memory_are_those_of_the_processes():
    busy, holds = start(BUSY), start(HOLDS)
    try:
        assert 0.25 <= processes.cpu_seconds([busy.pid]) < 5
        assert processes.memory_bytes([holds.pid]) > 50_000_000 > processes.memory_bytes([busy.pid])
        assert processes.memory_bytes([busy.pid, holds.pid]) > processes.memory_bytes([holds.pid])
    finally:
        finish(busy)
        finish(holds)


def test_processes_that_are_gone_count_nothing():
    process = start("print(flush=True)")
    process.wait()
    assert processes.cpu_seconds([process.pid]) == processes.memory_bytes([process.pid]) == 0
