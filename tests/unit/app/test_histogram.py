"""What Prometheus reads of our histogram is what it would read of its own library's."""

import random

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from app.histogram import LoopHistogram

BOUNDS = (0.0005, 0.25, 1.0, 30.0)
VALUES = [0.0, -1.0, *BOUNDS, 0.2, 31.0, 1e9, *(random.Random(0).expovariate(1) for _ in range(100))]


def as_text(observed, registry):
    for value in VALUES:
        observed.observe(value)
    return generate_latest(registry)


@pytest.mark.parametrize("labels", [(), ("route",), ("route", "status")])
def test_it_reads_as_the_librarys_does(labels):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    our = LoopHistogram("a_seconds", 'What it "is"', BOUNDS, labels=labels, registry=ours)
    their = Histogram("a_seconds", 'What it "is"', labels, buckets=BOUNDS, registry=theirs)
    assert generate_latest(ours) == generate_latest(theirs)  # from zero on, or not there
    if labels:
        for values in (("/predict", "200"), ('/"x"', "404")):
            our_text = as_text(our.labels(*values[: len(labels)]), ours)
            their_text = as_text(their.labels(*values[: len(labels)]), theirs)
    else:
        our_text, their_text = as_text(our, ours), as_text(their, theirs)
    assert our_text == their_text


def test_a_value_counts_as_often_as_it_is_said_to():
    registry = CollectorRegistry()
    LoopHistogram("a", "a", BOUNDS, registry=registry).labels().observe(0.5, 7)
    assert registry.get_sample_value("a_bucket", {"le": "0.25"}) == 0
    assert registry.get_sample_value("a_bucket", {"le": "1.0"}) == registry.get_sample_value("a_count") == 7
    assert registry.get_sample_value("a_sum") == 3.5
