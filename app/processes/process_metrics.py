"""The metrics of several processes as one: what each has counted, put together.

Counters and histograms are sums. Of gauges, what a process takes or holds is summed as well: memory, open files and how
many there may be, asyncio tasks. All others are the engine process': the queue, readiness, the model, when it started.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

SUMMED_GAUGES = frozenset(
    {
        "process_virtual_memory_bytes",
        "process_resident_memory_bytes",
        "process_open_fds",
        "process_max_fds",
        "resnet_tasks",
    }
)


def metrics_snapshot(registry: CollectorRegistry) -> bytes:
    """Return what a registry holds at this moment, to be sent to another process."""
    families = [
        [family.name, family.documentation, family.type, [[s.name, s.labels, s.value] for s in family.samples]]
        for family in registry.collect()
    ]
    return json.dumps(families).encode()


def merged_metrics(engine: bytes, others: Sequence[bytes]) -> bytes:
    """Put the engine process' `metrics_snapshot` and the others' together, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Merged(engine, others))
    return generate_latest(registry)


class _Merged(Collector):
    def __init__(self, engine: bytes, others: Sequence[bytes]) -> None:
        self._engine = engine
        self._others = others

    def collect(self) -> Iterator[Metric]:
        """Yield each family once."""
        sums: dict[str, tuple[Metric, dict[tuple[str, tuple[tuple[str, str], ...]], float]]] = {}
        for number, numbers in enumerate([self._engine, *self._others]):
            for name, documentation, kind, samples in json.loads(numbers):
                if name not in sums:
                    sums[name] = Metric(name, documentation, kind), {}
                if number and kind == "gauge" and name not in SUMMED_GAUGES:
                    continue
                values = sums[name][1]
                for sample, labels, value in samples:
                    key = sample, tuple(labels.items())
                    values[key] = values.get(key, 0.0) + value
        for metric, values in sums.values():
            for (sample, labels), value in values.items():
                metric.add_sample(sample, dict(labels), value)
            yield metric
