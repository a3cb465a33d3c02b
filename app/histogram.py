"""A histogram for numbers that one thread counts: what the event loop observes several times a request.

prometheus_client's own takes two locks and looks at one bucket after the other each time, 1 us; this one takes a third
of that. What Prometheus reads is the same.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Observations:
    """How often which bucket was met, and the sum; of one combination of labels."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float, count: int = 1) -> None:
        """Count a value, `count` times; a bucket's upper bound is in it."""
        self.counts[bisect_left(self._bounds, value)] += count
        self.total += value * count


class LoopHistogram(Collector):
    """A histogram of which all is done in one thread, with buckets up to each of the increasing `bounds`.

    One without labels is observed itself, others by what `labels` returns.
    """

    _type = "histogram"
    observe: Callable[[float], None]

    def __init__(
        self,
        name: str,
        documentation: str,
        bounds: Sequence[float],
        *,
        labels: Sequence[str] = (),
        registry: CollectorRegistry,
    ) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._labelnames = tuple(labels)
        self._texts: list[str] = [floatToGoString(bound) for bound in (*bounds, math.inf)]  # type: ignore[no-untyped-call]
        self._observations: dict[tuple[str, ...], Observations] = {}
        if not labels:
            self.observe = self.labels().observe  # from zero on
        registry.register(self)

    def labels(self, *values: str) -> Observations:
        """Return what is observed with these values of the labels."""
        if values not in self._observations:
            self._observations[values] = Observations(self._bounds)
        return self._observations[values]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield what Prometheus asks for."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=self._labelnames)
        for values, seen in self._observations.items():
            buckets = list(zip(self._texts, map(float, accumulate(seen.counts)), strict=True))
            family.add_metric(values, buckets, seen.total)
        yield family
