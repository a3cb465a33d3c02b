"""When an engine is given up: failures in a row, or no memory for long enough."""

import pytest

from app.batching import engine_failures
from app.batching.engine_failures import MAX_CONSECUTIVE_FAILURES, OUT_OF_MEMORY_S, EngineFailures
from app.batching.probes import Probe
from app.engine_errors import EngineBroken, EngineOutOfMemory

BATCH = Probe((3, 8, 8))


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(engine_failures.time, "monotonic", lambda: now[0])
    return now


def test_failures_in_a_row_break_the_engine():
    failures, cause = EngineFailures(), ValueError("of the last batch")
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        failures.add(ValueError(), BATCH)
    with pytest.raises(EngineBroken, match="3 batches failed in a row") as raised:
        failures.add(cause, BATCH)
    assert raised.value.__cause__ is cause


def test_a_batch_that_works_is_a_new_start(clock):
    failures = EngineFailures()
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        failures.add(ValueError(), BATCH)
        failures.add(EngineOutOfMemory(), BATCH)
        clock[0] += OUT_OF_MEMORY_S
        failures.clear()


def test_no_memory_is_borne_for_a_while_however_many_batches_that_are(clock):
    failures = EngineFailures()
    for _ in range(100):
        failures.add(EngineOutOfMemory(), BATCH)
    clock[0] += OUT_OF_MEMORY_S
    with pytest.raises(EngineBroken, match="out of memory in every batch for 10 s"):
        failures.add(EngineOutOfMemory(), BATCH)


def test_no_memory_is_borne_for_two_batches_however_far_apart(clock):
    failures = EngineFailures()
    failures.add(EngineOutOfMemory(), BATCH)
    clock[0] += 10 * OUT_OF_MEMORY_S
    failures.add(EngineOutOfMemory(), BATCH)
    with pytest.raises(EngineBroken):
        failures.add(EngineOutOfMemory(), BATCH)


@pytest.mark.parametrize("first", [ValueError(), EngineOutOfMemory()])
@pytest.mark.parametrize("second", [ValueError(), EngineOutOfMemory()])
def test_from_the_second_failure_of_whatever_kind_until_one_works_it_is_failing(first, second):
    failures = EngineFailures()
    failures.add(first, BATCH)
    assert not failures.failing
    failures.add(second, BATCH)
    assert failures.failing
    failures.clear()
    assert not failures.failing


def test_there_is_a_probe_of_the_same_size_of_image_from_a_failure_on_until_a_batch_works():
    failures = EngineFailures()
    assert failures.probe is None
    failures.add(ValueError(), BATCH)
    assert failures.probe.image_shape == (3, 8, 8)
    failures.clear()
    assert failures.probe is None
