"""What benchmarks/service.py makes of its rounds."""

import pytest

from benchmarks.closed_loop import MAX_RUN_S, seconds_of_a_run
from benchmarks.service import SECONDS, added_ms


def test_what_a_lone_client_waits_longer_is_the_rounds_own():
    """Though the machine became slower in between."""
    rounds = [{"p50_ms": 3.5}, {"p50_ms": 7.0}]
    assert added_ms(rounds, [[3.0, 3.2], [6.0, 7.0]]) == [0.4, 0.5]
    with pytest.raises(ValueError, match="shorter"):
        added_ms(rounds, [[3.0, 3.2]])


@pytest.mark.parametrize(("clients", "rate", "seconds"), [(1, 80, 4), (64, 1100, 8), (64, 100, 13), (64, 1, MAX_RUN_S)])
def test_a_run_is_long_enough_for_what_its_end_leaves_unanswered_to_count_for_little(clients, rate, seconds):
    assert seconds_of_a_run(SECONDS[clients], clients, rate) == seconds
