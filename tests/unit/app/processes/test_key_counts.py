import os
import subprocess
import sys

import pytest

from app.processes import key_counts
from app.processes.key_counts import NEAR, SharedInFlight
from app.processes.shared_state import SharedState
from tests.conftest import ROOT

RACER = """
import sys
from app.processes.shared_state import SharedState
in_flight = SharedState(int(sys.argv[1]), 1).in_flight
print("ready", flush=True)
sys.stdin.readline()
print(sum(in_flight.begin("key", 10_000) for _ in range(20_000)))
"""


@pytest.fixture
def views():
    first = SharedState.create(2)
    yield first.in_flight, SharedState(first.file, 2).in_flight
    os.close(first.file)


def test_a_limit_is_one_for_all_processes(views):
    one, other = views
    assert one.begin("a", 2)
    assert other.begin("a", 2)
    assert not one.begin("a", 2)
    assert other.begin("b", 1)
    other.end("a")
    assert one.begin("a", 2)
    assert not other.begin("a", 2)


def test_what_has_no_limit_is_counted_too_for_it_may_get_one(views):
    one, other = views
    assert all(one.begin("a", None) for _ in range(5))
    assert not other.begin("a", 5)
    other.end("a")
    assert other.begin("a", 5)


def test_processes_that_count_at_once_never_exceed_a_limit():
    shared = SharedState.create(1)
    command = [sys.executable, "-c", RACER, str(shared.file)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    racers = [subprocess.Popen(command, cwd=ROOT, pass_fds=[shared.file], **pipes) for _ in range(2)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    let_in = [int(racer.communicate()[0]) for racer in racers]
    assert sum(let_in) == 10_000
    assert min(let_in) > 0  # they did so at once
    os.close(shared.file)


@pytest.fixture
def crowded(monkeypatch):
    """A table in which all names want the same place."""
    monkeypatch.setattr(SharedInFlight, "_digest", lambda _self, name: bytes(4) + name.encode().ljust(12))
    shared = SharedState.create(1)
    yield shared.in_flight
    os.close(shared.file)


def test_names_that_want_the_same_row_are_counted_apart_and_rows_are_used_again(crowded):
    names = [f"key{number}" for number in range(NEAR)]
    assert all(crowded.begin(name, 1) for name in names)
    assert not any(crowded.begin(name, 1) for name in names)
    assert not crowded.begin("one more", 1)  # no row is left near its place
    crowded.end("key3")
    assert crowded.begin("one more", 1)
    assert not crowded.begin("key3", 1)
    crowded.end("key60")
    assert crowded.begin("key3", 1)  # in another row than before
    for name in {*names, "one more"} - {"key60"}:
        crowded.end(name)
    assert not any(crowded._table[row * key_counts.ROW.size + 16] for row in range(NEAR))
