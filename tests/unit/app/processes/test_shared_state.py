import os

import pytest

from app.batching.admission import Load
from app.processes.shared_state import SharedState


@pytest.fixture
def views():
    """The shared memory as the engine process and two HTTP processes see it, each through a mapping of its own."""
    engine = SharedState.create(2)
    yield engine, SharedState(engine.file, 2), SharedState(engine.file, 2)
    os.close(engine.file)


def test_it_begins_empty_with_everybody_alive(views):
    for shared in views:
        assert shared.load() == Load(0, 0, 0.0, 0)
        assert shared.engine_silent_s < 60
        assert all(shared.silent_s(index) < 60 for index in (0, 1))
        assert all(shared.connections(index, 0) == 0 for index in (0, 1))


def test_what_is_decoded_or_on_its_way_is_part_of_everybodys_queue_until_the_engine_has_it(views):
    engine, first, second = views
    engine.publish(Load(5, 2, 700.0, 16), 0.0)
    first.count_admitted(0, 3)
    second.count_admitted(1, 4)
    second.count_admitted(1, -1)  # one of them could not be decoded
    for shared in views:
        assert shared.load() == Load(5 + 3 + 3, 2, 700.0, 16)
        assert shared.in_flight_images() == 6
    engine.count_received(0, 3)
    engine.publish(Load(8, 2, 700.0, 16), 0.0)
    for shared in views:
        assert shared.load() == Load(8 + 3, 2, 700.0, 16)


def test_everybody_knows_who_stalls_and_who_is_silent(views, monkeypatch):
    engine, first, second = views
    now = 1000.0
    monkeypatch.setattr("app.processes.shared_state.time.monotonic", lambda: now)
    engine.publish(Load(0, 0, 0.0, 1), 3.0)
    first.beat(0, 0.0)
    now = 1002.0
    second.beat(1, 7.0)
    assert first.engine_stalled_s == 3.0
    assert second.engine_silent_s == 2.0
    assert [engine.silent_s(index) for index in (0, 1)] == [2.0, 0.0]
    assert [engine.decoder_stalled_s(index) for index in (0, 1)] == [0.0, 7.0]


def test_connections_count_from_the_moment_they_are_handed_over(views):
    engine, first, _ = views
    assert engine.connections(0, handed=3) == 3
    first.count_connections(0, connections=2, arrived=2)
    assert engine.connections(0, handed=3) == 3
    first.count_connections(0, connections=1, arrived=3)  # two have left again
    assert engine.connections(0, handed=3) == 1
    assert engine.connections(1, handed=0) == 0
