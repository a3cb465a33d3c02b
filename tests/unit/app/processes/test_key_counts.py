import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from app.processes import key_counts
from app.processes.key_counts import SharedInFlight
from app.processes.shared_state import SharedState
from tests.conftest import ROOT

RACER = """
import sys
from app.processes.key_counts import SharedInFlight
from app.processes.shared_state import SharedState
in_flight = SharedInFlight(SharedState(int(sys.argv[1]), 2).keys, int(sys.argv[2]))
in_flight.know(["key"])
print("ready", flush=True)
while sys.stdin.readline():
    let_in = sum(in_flight.begin("key", 10_000) for _ in range(20_000))
    print(let_in, flush=True)
    sys.stdin.readline()
    for _ in range(let_in):
        in_flight.end("key")
    print("ready", flush=True)
"""

CLAIMER = """
import sys
from app.processes.key_counts import SharedInFlight
from app.processes.shared_state import SharedState
table = SharedState(int(sys.argv[1]), 2).keys
SharedInFlight(table, 1).know(["a"])
with table._locked():
    print("locked", flush=True)
    sys.stdin.readline()
"""


def racers(code, shared, *indices):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, str(shared.file), str(index)], cwd=ROOT, pass_fds=[shared.file], **pipes
        )
        for index in indices
    ]


@pytest.fixture
def shared():
    shared = SharedState.create(2)
    yield shared
    os.close(shared.file)


@pytest.fixture
def views(shared):
    """What each of two HTTP processes has, through a mapping of its own; both know `a` and `b`."""
    views = [SharedInFlight(SharedState(shared.file, 2).keys, index) for index in (0, 1)]
    for one in views:
        one.know(["a", "b"])
    return views


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
    one.end("a")
    assert other.begin("a", 5)


def test_processes_that_count_at_once_never_exceed_a_limit(shared):
    both = racers(RACER, shared, 0, 1)

    def go():
        for racer in both:
            racer.stdin.write("\n")
            racer.stdin.flush()

    while True:
        assert [racer.stdout.readline() for racer in both] == ["ready\n"] * 2
        go()
        let_in = [int(racer.stdout.readline()) for racer in both]
        assert sum(let_in) == 10_000
        if min(let_in) > 0:  # they did so at once, as processes on a busy machine may not
            break
        go()
    for racer in both:
        racer.communicate()


def test_where_another_process_was_quicker_it_is_one_too_many_and_is_taken_back(views):
    one, other = views

    @contextmanager
    def meanwhile():
        assert other.begin("a", None)
        yield

    fence, one._fence = one._fence, meanwhile()
    assert not one.begin("a", 1)
    other.end("a")
    one._fence = fence
    assert one.begin("a", 1)


def test_a_process_that_is_stopped_while_it_has_the_lock_keeps_no_request_waiting(views, shared):
    (claimer,) = racers(CLAIMER, shared, 1)
    assert claimer.stdout.readline() == "locked\n"
    claimer.send_signal(signal.SIGSTOP)
    assert views[0].begin("a", 1)
    assert not views[0].begin("a", 1)
    views[0].end("a")
    claimer.kill()
    claimer.communicate()


def test_what_a_process_counted_goes_with_it(views, shared):
    one, other = views
    assert other.begin("a", 1)
    assert not one.begin("a", 1)
    shared.keys.forget(1)
    assert one.begin("a", 1)
    one.end("a")


def test_what_is_not_known_is_not_counted(views):
    assert not views[0].begin("c", None)


def test_what_a_key_has_under_way_survives_that_it_is_taken_out_and_comes_back(views):
    one, other = views
    assert one.begin("a", 2)
    assert one.begin("a", 2)
    for view in views:
        view.know(["b"])
    assert not other.begin("a", 2)
    for view in views:
        view.know(["a", "b"])
    assert not other.begin("a", 2)
    one.end("a")
    assert other.begin("a", 2)
    one.know(["b"])
    one.end("a")
    one.know(["a"])
    assert one.begin("a", 2)
    assert not one.begin("a", 2)


@pytest.fixture
def small(monkeypatch):
    """The processes' views of a table of three rows."""
    monkeypatch.setattr(key_counts, "ROWS", 3)
    shared = SharedState.create(2)
    yield [SharedInFlight(shared.keys, index) for index in (0, 1)]
    os.close(shared.file)


def test_rows_of_names_that_nobody_knows_any_more_are_used_again(small, caplog):
    one, other = small
    for view in small:
        view.know(["a", "b", "c"])
        assert view.begin("c", None)
    one.know(["a", "b", "d"])  # the others still know `c`
    assert "too many keys" in caplog.text
    assert not one.begin("d", None)
    assert one.begin("a", 1)
    caplog.clear()
    other.know(["a", "b", "d"])
    other.end("c")
    other.know(["a", "b", "d"])
    assert not other.begin("d", None)  # `one` has a request of `c` under way
    one.end("c")
    caplog.clear()
    for view in small:
        view.know(["a", "b", "d"])
    assert other.begin("d", 1)
    assert not one.begin("d", 1)
    assert not other.begin("a", 1)
    assert caplog.text == ""
