import pytest

from benchmarks.queueing import batch_seconds, latency_s


def test_a_queue_without_batches_is_as_theory_says():
    # M/D/1 at 80 %: requests wait 2 service times on average, and 1 in 100 waits 9.5 or more.
    assert latency_s(80.0, lambda count: 0.01 * count, 1, 50) == pytest.approx(0.0233, rel=0.05)
    assert latency_s(80.0, lambda count: 0.01 * count, 1, 99) == pytest.approx(0.105, rel=0.1)


def test_batches_that_cost_as_much_as_one_image_shorten_the_queue():
    alone, together = (latency_s(80.0, lambda _count: 0.01, most, 99) for most in (1, 32))
    assert together < alone / 4
    assert latency_s(1.0, lambda _count: 0.01, 32, 50) == pytest.approx(0.01)


def test_times_between_the_measured_sizes_lie_on_a_line():
    seconds = batch_seconds({8: 0.017, 1: 0.003})
    assert [seconds(count) for count in (1, 4, 8)] == pytest.approx([0.003, 0.009, 0.017])
