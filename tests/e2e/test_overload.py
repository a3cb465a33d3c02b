"""Ten times what the service can do: it does what it can, refuses the rest at once, and is itself again soon after."""

import asyncio
import gc
import json
import statistics
import time
from functools import partial

import httpx
import numpy as np
import pytest

from benchmarks.load import Windows, closed_loop_windows, post
from benchmarks.processes import cpu_seconds, tree
from benchmarks.records import write
from model.hardware.cores import available_cores
from tests.overload import start_sender
from tests.probing import PROBE_S, Probe, control, figures, probe, probe_until

pytestmark = pytest.mark.e2e

CLIENTS = 64
TIMES = 10
WARM_UP_S = 1.0
RECOVERY_S = 2.0
WINDOWS = 5  # of the rates before and after: a machine's pace changes by factors, in seconds
PATHS = ("/livez", "/readyz")


@pytest.fixture
def _no_long_collections():
    """To look through all that other tests have left takes 0.1 to 0.2 s, in which no probe could be sent or read."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def cores_between(begin, end, used_s):
    """Return how many cores are used on average from `begin` to `end`, two times of time.perf_counter.

    `used_s` returns the processor seconds used so far.
    """
    await asyncio.sleep(begin - time.perf_counter())
    begun, before_s = time.perf_counter(), used_s()
    await asyncio.sleep(end - time.perf_counter())
    return (used_s() - before_s) / (time.perf_counter() - begun)


async def rate_of_clients(port, request, begin, window_s, service_used_s):
    """Return the answers to CLIENTS clients, who ask from now on, in WINDOWS windows from `begin` on.

    And how many cores the clients took meanwhile, which are in this process, and the service.
    """
    end = begin + WINDOWS * window_s
    return await asyncio.gather(
        closed_loop_windows(port, [request], CLIENTS, begin=begin, window_s=window_s, count=WINDOWS),
        cores_between(begin, end, time.process_time),
        cores_between(begin, end, service_used_s),
    )


async def scenario(service, picture, seconds, window_s, flags):
    """Return the rates before and after, the sender's report, the probes, those of the control, and cores used."""
    port, request = service.port, post("/predict", picture, {"content-type": "image/png"})
    service_used_s = partial(cpu_seconds, tree(service.process.pid))
    before = await rate_of_clients(port, request, time.perf_counter() + WARM_UP_S, window_s, service_used_s)
    rate = TIMES * before[0].median_per_s
    sender = await start_sender(port, rate, seconds, "examples/cat.png", *flags)
    try:
        async with control() as control_port:
            done, begin = asyncio.Event(), time.perf_counter()
            asked = [*((port, path) for path in PATHS), (control_port, "/")]
            probing = [asyncio.create_task(probe_until(*one, done, begin)) for one in asked]
            used_s, own_s = service_used_s(), time.process_time()
            sender.stdin.write(b"\n")
            assert await sender.stdout.readline() == b"sent\n"
            again = time.perf_counter() + RECOVERY_S
            took_s = again - RECOVERY_S - begin
            cores = [(service_used_s() - used_s) / took_s, (time.process_time() - own_s) / took_s]
            done.set()
            after = await rate_of_clients(port, request, again, window_s, service_used_s)
            *probes, controls = await asyncio.gather(*probing)
        sent = json.loads((await sender.communicate(b"\n"))[0])
        sent["until_after_s"] = again - sent["ended"]
        return before, after, sent, [one for several in probes for one in several], controls, cores
    except BaseException:
        sender.kill()
        raise


def windows_of(windows, sender_cores, service_cores):
    """Return a record of rates: the median window's, each window's, and what took the cores."""
    cuts = statistics.quantiles(windows.times, n=100, method="inclusive")
    return {
        "requests_per_s": windows.median_per_s,
        "windows_per_s": windows.per_s,
        "p50_ms": round(cuts[49] * 1e3, 2),
        "p99_ms": round(cuts[98] * 1e3, 2),
        "refused": windows.refused,
        "errors": windows.errors,
        "sender_cores": round(sender_cores, 2),
        "service_cores": round(service_cores, 2),
    }


def record(before, after, sent, probes, controls, cores, window_s):
    """Return the figures of a run, as `scenario` returned it."""
    took = [answered - begun for begun, answered in sent["good"]]
    ended, sending_s = np.array([answered for _, answered in sent["good"]]), sent["sending_s"]
    good = int((ended <= sending_s).sum()) / sending_s
    by_window = np.histogram(ended, np.arange(0.0, sending_s + window_s / 2, window_s))[0] / window_s
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    rate, later = before[0].median_per_s, after[0].median_per_s
    service_cores, prober_cores = cores
    left = available_cores() - sent["cores"] - prober_cores
    left_before = available_cores() - before[1]
    return {
        "before": windows_of(*before),
        "window_s": window_s,
        "offered_per_s": round(sent["sent"] / sending_s, 1),
        "seconds": round(sending_s, 1),
        "connections_before": sent["connections_before"],
        "connections_opened": sent["connections_opened"],  # while sending
        "before_sender_cores": round(before[1], 2),
        "sender_cores": round(sent["cores"], 2),
        "prober_cores": round(prober_cores, 2),
        "service_cores": round(service_cores, 2),
        "statuses": sent["statuses"],
        "sent": sent["sent"],
        "sent_late": sent["sent_late"],
        "unanswered": sent["unanswered"],
        "429_without_retry_after": sent["429_without_retry_after"],
        "goodput_per_s": round(good, 1),
        "goodput_windows_per_s": [round(float(per_s), 1) for per_s in by_window],
        "goodput_share": round(good / rate, 3),
        # Answers for each core that sender and prober left to the service: no target's, but what it did of it.
        "goodput_share_per_core": round(good / left / (rate / left_before), 3),
        "accepted_p50_s": round(cuts[49], 3),
        "accepted_p99_s": round(cuts[98], 3),
        "accepted_slowest_s": round(max(took), 3),
        "queue_empty_after_s": round(float(ended.max()) - sending_s, 3),
        "after": windows_of(*after),
        "after_begins_s": round(sent["until_after_s"], 3),  # after the last request
        "after_leftovers": int((ended >= sending_s + sent["until_after_s"]).sum()),  # answers in `after` to before it
        "after_2_s_per_s": later,
        "after_2_s_share": round(later / rate, 3),
        "after_2_s_first_window_share": round(after[0].per_s[0] / rate, 3),  # the median hides a slow beginning
        **figures(probes, "probe"),
        **figures(controls, "control_probe"),
    }


def test_a_probe_that_waits_for_its_answer_puts_off_no_other_one():
    """Else the slower the answers, the fewer the probes that find it out."""
    waiting = []

    async def run():
        done = asyncio.Event()

        async def handle(reader, writer):
            await reader.readuntil(b"\r\n\r\n")
            waiting.append(writer)
            if len(waiting) == 3:
                done.set()
            await done.wait()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listener:
            port = listener.sockets[0].getsockname()[1]
            return await asyncio.wait_for(probe_until(port, "/livez", done, time.perf_counter()), 60)

    times = asyncio.run(run())
    assert len(times) == len(waiting) >= 3
    assert times[0].late_s + times[0].took_s >= 2 * PROBE_S


def test_what_the_prober_is_late_is_not_the_services():
    async def run():
        async with control() as port:
            return await probe(port, "/", due=time.perf_counter() - 1e6)

    found = asyncio.run(run())
    assert found.took_s < 1e6 <= found.late_s
    told = figures([found, found], "probe")
    assert told["probe_sent_late"] == 2
    assert told["probe_slowest_ms"] < 1e9 <= told["probe_due_slowest_ms"]


def test_the_record_of_an_overload_compares_what_is_alike(monkeypatch):
    """80 answers in time of 100 a second before: 80%, and all of what the cores did that were left to the service."""
    monkeypatch.setattr("tests.e2e.test_overload.available_cores", lambda: 2)
    before = Windows([100.0, 100.0, 10.0, 100.0, 200.0], [0.5, 0.7], 0, 0), 0.0, 1.9
    after = Windows([50.0, 90.0, 90.0, 90.0, 90.0], [0.5, 0.7], 0, 0), 0.0, 1.9
    # Two seconds: 80 answers in each, 5 soon after the end and 7 more than RECOVERY_S after it.
    ends = [0.5] * 80 + [1.5] * 80 + [2.5] * 5 + [4.5] * 7
    sent = {
        "sending_s": 2.0,
        "cores": 0.3,
        "sent": 2000,
        "sent_late": 0,
        "statuses": {"200": 172, "429": 1828},
        "unanswered": 0,
        "429_without_retry_after": 0,
        "connections_before": 9,
        "connections_opened": 1,
        "until_after_s": RECOVERY_S,
        "good": [(0.0, end) for end in ends],
    }
    found = record(before, after, sent, [Probe(0.5, 0.03)] * 2, [Probe(0.0, 0.01)] * 2, (1.6, 0.1), 1.0)
    assert (found["before"]["requests_per_s"], found["goodput_share"], found["after_2_s_share"]) == (100.0, 0.8, 0.9)
    assert found["goodput_windows_per_s"] == [80.0, 80.0]
    assert found["goodput_share_per_core"] == 1.0
    assert (found["after_leftovers"], found["after_2_s_first_window_share"]) == (7, 0.5)
    assert (found["probe_slowest_ms"], found["control_probe_slowest_ms"]) == (30.0, 10.0)


@pytest.mark.usefixtures("_no_long_collections")
@pytest.mark.parametrize(
    ("seconds", "window_s", "timeout_ms", "flags"),
    [
        # A deadline that a machine busy with something else keeps, too.
        pytest.param(4, 0.5, 60_000, ("--connect-first",), id="short"),
        pytest.param(4, 0.5, 60_000, (), id="short-on-new-connections", marks=pytest.mark.chaos),
        pytest.param(60, 2.0, 10_000, ("--connect-first",), id="a-minute", marks=pytest.mark.chaos),  # the default
        pytest.param(
            60, 2.0, 10_000, ("--connect-first", "--ids"), id="a-minute-as-behind-a-proxy", marks=pytest.mark.chaos
        ),
    ],
)
def test_ten_times_the_sustainable_rate_is_answered_or_refused_at_once(
    start, tuning, examples, seconds, window_s, timeout_ms, flags
):
    service = start(timeout_ms=timeout_ms)
    found = asyncio.run(scenario(service, examples["cat"], seconds, window_s, flags))
    result = {
        "command": "pytest -m chaos tests/e2e/test_overload.py",
        "tuning": tuning,  # two starts may choose otherwise, and differ by it
        **record(*found, window_s),
    }
    if seconds == 60:
        write(f"reliability/overload{'_ids' if '--ids' in flags else ''}.json", result)
    assert set(result["statuses"]) == {"200", "429"}, result
    assert result["429_without_retry_after"] == 0
    assert result["unanswered"] == 0
    assert result["before"]["errors"] == result["after"]["errors"] == 0
    assert result["accepted_slowest_s"] <= timeout_ms / 1000 + 1.0  # the client's side of it, too
    ask = {"content": examples["cat"], "headers": {"content-type": "image/png"}}
    assert httpx.post(f"{service.url}/predict", timeout=60, **ask).status_code == 200
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    assert "Traceback" not in service.log
    if seconds == 60:
        # Looser than what is meant, for machines that are busy with something else: see docs/reliability.md.
        assert result["goodput_share"] >= 0.5, result
        assert result["after_2_s_share"] >= 0.7, result
