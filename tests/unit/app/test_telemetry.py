"""What is counted is what there was: of several at once each."""

import asyncio

import pytest

from app.telemetry import Telemetry

CARD = {
    "name": "n",
    "version": "v",
    "architecture": {"arch": "a"},
    "device": "cpu",
    "dtype": "f",
    "classes": ["x", "y"],
}


@pytest.fixture
def telemetry():
    telemetry = Telemetry()
    telemetry.describe_model(CARD)
    return telemetry


def value(telemetry, name, **labels):
    return telemetry.registry.get_sample_value(name, labels)


def test_answers_that_are_recorded_together_count_each(telemetry):
    telemetry.record_answer("/predict", 429, 0.25, 3)
    assert value(telemetry, "resnet_requests_total", route="/predict", status="429") == 3
    assert value(telemetry, "resnet_request_seconds_count", route="/predict") == 3
    assert value(telemetry, "resnet_request_seconds_sum", route="/predict") == 0.75


def test_each_image_of_a_request_counts_with_its_class_and_confidence(telemetry):
    telemetry.record_prediction([1, 0, 1], [0.5, 0.75, 1.0])
    assert value(telemetry, "resnet_images_total", outcome="ok") == 3
    assert [value(telemetry, "resnet_predictions_total", label=label) for label in ("x", "y")] == [1, 2]
    assert value(telemetry, "resnet_confidence_count") == 3
    assert value(telemetry, "resnet_confidence_sum") == 2.25


@pytest.mark.anyio
async def test_what_is_watched_is_read_when_metrics_are_asked_for(telemetry):
    now = {"resnet_queue_images": 3.0, "resnet_engine_images_per_second": 0.5, "resnet_ready": 0.0}
    queued, pace, ready = now
    telemetry.watch(lambda: now[queued], lambda: now[pace], lambda: now[ready] == 1)
    at_rest = value(telemetry, "resnet_tasks")
    for _ in range(2):
        assert {name: value(telemetry, name) for name in now} == now
        now.update({queued: 0.0, pace: 8.0, ready: 1.0})
    waiting = [asyncio.ensure_future(asyncio.Event().wait()) for _ in range(2)]
    assert value(telemetry, "resnet_tasks") == at_rest + 2
    for task in waiting:
        task.cancel()
