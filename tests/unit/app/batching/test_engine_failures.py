"""When an engine is given up: failures in a row, or no memory for long enough."""

import pytest

from app.batching import engine_failures
from app.batching.engine_failures import MAX_CONSECUTIVE_FAILURES, OUT_OF_MEMORY_S, EngineFailures
from app.engine_errors import EngineBroken, EngineOutOfMemory


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [100.0]
    monkeypatch.setattr(engine_failures.time, "monotonic", lambda: now[0])
    return now


def test_failures_in_a_row_break_the_engine():
    failures, cause = EngineFailures(), ValueError("of the last batch")
    for _ in range(MAX_CONSECUTIVE_FAILURES - 1):
        failures.add(ValueError())
    with pytest.raises(EngineBroken, match="3 batches failed in a row") as raised:
        failures.add(cause)
    assert raised.value.__cause__ is cause


def test_a_batch_that_works_is_a_new_start(clock):
    failures = EngineFailures()
    for _ in range(2 * MAX_CONSECUTIVE_FAILURES):
        failures.add(ValueError())
        failures.add_out_of_memory(EngineOutOfMemory())
        clock[0] += OUT_OF_MEMORY_S
        failures.clear()


def test_no_memory_is_borne_for_a_while_however_many_batches_that_are(clock):
    failures = EngineFailures()
    for _ in range(100):
        failures.add_out_of_memory(EngineOutOfMemory())
    clock[0] += OUT_OF_MEMORY_S
    with pytest.raises(EngineBroken, match="out of memory in every batch for 10 s"):
        failures.add_out_of_memory(EngineOutOfMemory())


def test_no_memory_is_borne_for_two_batches_however_far_apart(clock):
    failures = EngineFailures()
    failures.add_out_of_memory(EngineOutOfMemory())
    clock[0] += 10 * OUT_OF_MEMORY_S
    failures.add_out_of_memory(EngineOutOfMemory())
    with pytest.raises(EngineBroken):
        failures.add_out_of_memory(EngineOutOfMemory())
