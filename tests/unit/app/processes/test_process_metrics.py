from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from app.processes.process_metrics import merged_metrics, metrics_snapshot
from app.telemetry import Telemetry
from tests.fakes import FakeEngine


def values_of(text):
    families = text_string_to_metric_families(text.decode())
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


def telemetry(requests=0, shift=0):
    one = Telemetry()
    one.describe_model(FakeEngine(shift=shift).card)
    one.watch(lambda: 11.0 + shift, lambda: 300.0 + shift, lambda: not shift)
    one.tasks.set_function(lambda: 5.0)
    for _ in range(requests):
        one.requests.labels("/predict", "200").inc()
        one.decode_seconds.observe(0.003)
        one.record_prediction([3], [0.97])
    return one


def test_of_one_process_nothing_changes():
    one = telemetry(requests=3)
    one.registry.unregister(next(iter(one.registry._collector_to_names)))  # the process' own, which never stand still
    assert merged_metrics(metrics_snapshot(one.registry), []) == generate_latest(one.registry)


def test_counters_and_histograms_are_sums_and_gauges_the_engines():
    engine, first, second = telemetry(), telemetry(requests=2, shift=1), telemetry(requests=5, shift=1)
    engine.record_batch(7, 0.01)
    first.rejected.labels("of-its-own").inc()  # nobody else knows this one
    numbers = [metrics_snapshot(one.registry) for one in (engine, first, second)]
    values = values_of(merged_metrics(numbers[0], numbers[1:]))
    assert values["resnet_requests_total", ("route", "/predict"), ("status", "200")] == 7
    assert values["resnet_decode_seconds_count",] == 7
    assert values["resnet_decode_seconds_bucket", ("le", "0.0025")] == 0
    assert values["resnet_decode_seconds_bucket", ("le", "0.005")] == 7
    assert values["resnet_predictions_total", ("label", "class3")] == 7
    assert values["resnet_batch_images_sum",] == 7
    assert values["resnet_rejected_total", ("reason", "of-its-own")] == 1
    assert values["resnet_queue_images",] == 11
    assert values["resnet_engine_images_per_second",] == 300
    assert values["resnet_ready",] == 1
    assert values["resnet_tasks",] == 15
    (version,) = [dict(key[1:])["version"] for key in values if key[0] == "resnet_model_info"]
    assert version == FakeEngine().card["version"]


def test_memory_and_time_of_all_are_summed_but_not_when_they_began():
    one = telemetry()
    numbers = metrics_snapshot(one.registry)
    alone, three = values_of(merged_metrics(numbers, [])), values_of(merged_metrics(numbers, [numbers, numbers]))
    for name in ("process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds", "process_max_fds"):
        assert three[name,] == 3 * alone[name,]
    assert three["process_start_time_seconds",] == alone["process_start_time_seconds",]
