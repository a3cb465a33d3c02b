"""Metrics. Their names and labels are contract: dashboards and alerts are built on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from app.errors import TOO_MANY_CONNECTIONS, UNREAD_RESPONSE, ClientGone, ServiceError
from app.histogram import LoopHistogram, Observations
from app.release import release, revision

# What a request, or a connection, is refused for.
KINDS: list[type[ServiceError]] = [ServiceError, *ServiceError.__subclasses__()]
REASONS = [kind.code for kind in KINDS if kind is not ClientGone]
REASONS += [TOO_MANY_CONNECTIONS, UNREAD_RESPONSE]

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
SHARES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Telemetry:
    """One registry for one service, so that two services in one process (tests) do not mix."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("resnet_requests", "Requests answered", ["route", "status"], registry=registry)
        self.request_seconds = LoopHistogram(
            "resnet_request_seconds",
            "From the end of the header to the hand-over of the answer; 0 for requests turned away at once",
            SECONDS,
            labels=["route"],
            registry=registry,
        )
        self.images = Counter(
            "resnet_images",
            "Images by what became of them: ok, or the reason they were not",
            ["outcome"],
            registry=registry,
        )
        self.decode_seconds = LoopHistogram(
            "resnet_decode_seconds",
            "Decoding a request's images, in all threads together, with large ones' waiting for memory",
            SECONDS,
            registry=registry,
        )
        self.queue_seconds = LoopHistogram(
            "resnet_queue_seconds",
            "Waiting for a decoding thread and for a batch, by request",
            SECONDS,
            registry=registry,
        )
        self.inference_seconds = LoopHistogram(
            "resnet_inference_seconds",
            "Engine time of a batch, without what was beside the end of the one before",
            SECONDS,
            registry=registry,
        )
        self.batch_images = LoopHistogram("resnet_batch_images", "Images in a batch", BATCHES, registry=registry)
        self.queue_images = Gauge("resnet_queue_images", "Images that wait or are being decoded", registry=registry)
        self.engine_images_per_second = Gauge(
            "resnet_engine_images_per_second",
            "What the engine computes in full batches; until it has had one, what it did in a trial when it started",
            registry=registry,
        )
        self.tasks = Gauge("resnet_tasks", "asyncio tasks; at rest always as many", registry=registry)
        self.rejected = Counter("resnet_rejected", "Requests refused, by reason", ["reason"], registry=registry)
        self.key_requests = Counter(
            "resnet_key_requests", "Requests that carried a key, by the key's name", ["key"], registry=registry
        )
        self.predictions = Counter("resnet_predictions", "Images by predicted class", ["label"], registry=registry)
        self.confidence = LoopHistogram(
            "resnet_confidence", "Probability of the predicted class", SHARES, registry=registry
        )
        self.model_info = Gauge(
            "resnet_model_info",
            "Always 1; the labels say what is served",
            ["name", "version", "architecture", "device", "dtype"],
            registry=registry,
        )
        self.reloads = Counter(
            "resnet_reloads", "Reloads of the checkpoint by how they ended", ["outcome"], registry=registry
        )
        self.file_reloads = Counter(
            "resnet_file_reloads",
            "Files of keys and certificates that were read again, by process, and whether they could be used",
            ["file", "outcome"],
            registry=registry,
        )
        for file in ("keys", "certificate"):
            for outcome in ("read", "refused"):
                self.file_reloads.labels(file, outcome)
        self.build_info = Gauge(
            "resnet_build_info",
            "Always 1; the labels say which release runs, and from which revision it was built",
            ["version", "revision"],
            registry=registry,
        )
        self.build_info.labels(release(), revision()).set(1)
        self.certificate_expiry = Gauge(
            "resnet_tls_certificate_expiry_timestamp_seconds",
            "When the certificate that new handshakes get ends, as a Unix time; only with TLS",
            registry=None,
        )
        self.ready = Gauge("resnet_ready", "1 when a prediction would succeed, else 0", registry=registry)
        # Looking up a label costs more than counting does.
        self._answered: dict[tuple[str, int], tuple[Counter, Observations]] = {}
        # From zero on: who watches for an increase would not see the first of a kind.
        self._refused: dict[str, Counter] = {reason: self.rejected.labels(reason) for reason in REASONS}

    def watch(
        self, queued_images: Callable[[], float], images_per_second: Callable[[], float], ready: Callable[[], bool]
    ) -> None:
        """Read the queue's depth, the engine's pace, readiness and the loop's tasks when metrics are asked for."""
        self.queue_images.set_function(queued_images)
        self.engine_images_per_second.set_function(images_per_second)
        self.tasks.set_function(lambda: float(len(asyncio.all_tasks())))
        self.ready.set_function(lambda: float(ready()))

    def watch_certificate(self, expires_at: Callable[[], float]) -> None:
        """Publish when the certificate ends, a Unix time."""
        self.registry.register(self.certificate_expiry)
        self.certificate_expiry.set_function(expires_at)

    def describe_model(self, card: dict[str, Any]) -> None:
        """Publish which model is served, in place of the one before, and start every class's counter at zero."""
        self.model_info.clear()
        self.model_info.labels(
            card["name"], card["version"], card["architecture"]["arch"], card["device"], card["dtype"]
        ).set(1)
        self._by_class = [self.predictions.labels(label) for label in card["classes"]]
        self._ok = self.images.labels("ok")

    def record_answer(self, route: str, status: int, seconds: float, count: int = 1) -> None:
        """Record `count` answers that took so long; `route` is the route's template."""
        known = self._answered.get((route, status))
        if known is None:
            known = self.requests.labels(route, str(status)), self.request_seconds.labels(route)
            self._answered[route, status] = known
        known[0].inc(count)
        known[1].observe(seconds, count)

    def record_refusal(self, reason: str, count: int = 1) -> None:
        """Record `count` refusals by their error's code."""
        known = self._refused.get(reason)
        if known is None:
            known = self._refused[reason] = self.rejected.labels(reason)
        known.inc(count)

    def refusals(self) -> dict[str, float]:
        """Return how many requests and connections have been refused so far, by reason."""
        (metric,) = self.rejected.collect()
        return {sample.labels["reason"]: sample.value for sample in metric.samples}

    def record_batch(self, images: int, seconds: float) -> None:
        """Record a finished batch."""
        self.batch_images.observe(images)
        self.inference_seconds.observe(seconds)

    def record_prediction(self, winners: list[int], confidences: list[float]) -> None:
        """Record the answers of a request: the index and the probability of each image's likeliest class."""
        self._ok.inc(len(winners))
        for winner, confidence in zip(winners, confidences, strict=True):
            self._by_class[winner].inc()
            self.confidence.observe(confidence)

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return generate_latest(self.registry)
