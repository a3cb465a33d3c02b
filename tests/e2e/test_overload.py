"""Ten times what the service can do: it does what it can, refuses the rest at once, and is itself again soon after."""

import asyncio
import gc
import json
import statistics
import sys
import time

import httpx
import pytest

from benchmarks.load import LoadError, closed_loop, exchange, post, summarise
from benchmarks.processes import cpu_seconds, tree
from benchmarks.records import write
from tests.conftest import ROOT

pytestmark = pytest.mark.e2e

CLIENTS = 64
TIMES = 10
RECOVERY_S = 2.0
PROBE_S = 0.1
PROBES = ("/livez", "/readyz")


@pytest.fixture
def _no_long_collections():
    """To look through all that other tests have left takes 0.1 to 0.2 s, in which no probe could be sent or read."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def probe(port, path, due):
    """Ask as an orchestrator does, on a new connection, and return the seconds to the answer from when it was due.

    `due` is in seconds of time.perf_counter. Raises LoadError unless 200.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await exchange(reader, writer, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        return time.perf_counter() - due
    finally:
        writer.close()


async def probe_until(port, path, done):
    """Ask every PROBE_S, whether the last one was answered or not: a slow answer is not to put off the next one."""
    begun = time.perf_counter()
    probes = []
    while not done.is_set():
        due = begun + len(probes) * PROBE_S
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        probes.append(asyncio.create_task(probe(port, path, due)))
    return await asyncio.gather(*probes)


async def answered_later(port, request, seconds):
    """Return the answers a second to so many clients as before, from RECOVERY_S on; refused ones try again."""
    begin = time.perf_counter() + RECOVERY_S
    counted = 0

    async def client():
        nonlocal counted
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (now := time.perf_counter()) < begin + seconds:
            try:
                await exchange(reader, writer, request)
                counted += begin <= now and time.perf_counter() < begin + seconds
            except LoadError as refusal:
                if "http/1.1 429 " not in str(refusal):
                    raise
                await asyncio.sleep(0.1)
        writer.close()

    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return counted / seconds


async def overload(service, rate, seconds, ids):
    """Let the sender send, probing meanwhile.

    Returns it, still waiting for answers, the seconds of all probes, and how many cores the service took.
    """
    port, processes = service.port, tree(service.process.pid)
    command = ["-m", "tests.overload", str(port), str(rate), str(seconds), "examples/cat.png", *ids]
    sender = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=ROOT, stdout=asyncio.subprocess.PIPE, limit=1 << 30
    )
    try:
        done = asyncio.Event()
        begun, used_s = time.perf_counter(), cpu_seconds(processes)
        probing = [asyncio.create_task(probe_until(port, path, done)) for path in PROBES]
        assert await sender.stdout.readline() == b"sent\n"
        cores = (cpu_seconds(processes) - used_s) / (time.perf_counter() - begun)
        done.set()
        probes = [one for times in await asyncio.gather(*probing) for one in times]
        return sender, probes, cores
    except BaseException:
        sender.kill()
        raise


async def scenario(service, picture, seconds, closed_s, ids):
    port = service.port
    request = post("/predict", picture, {"content-type": "image/png"})
    await closed_loop(port, [request], CLIENTS, 1.0)  # not counted: warming up
    before = summarise(await closed_loop(port, [request], CLIENTS, closed_s))
    sender, probes, cores = await overload(service, TIMES * before["requests_per_s"], seconds, ids)
    after = await answered_later(port, request, closed_s)
    sent = json.loads(await sender.stdout.read())
    return before, sent, probes, cores, after


def test_a_probe_that_waits_for_its_answer_puts_off_no_other_one_and_counts_from_when_it_was_due():
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
            return await asyncio.wait_for(probe_until(port, "/livez", done), 60)

    times = asyncio.run(run())
    assert len(times) == len(waiting) >= 3
    assert times[0] >= 2 * PROBE_S


@pytest.mark.usefixtures("_no_long_collections")
@pytest.mark.parametrize(
    ("seconds", "closed_s", "timeout_ms", "ids"),
    [
        pytest.param(4, 2.0, 60_000, (), id="short"),  # a deadline that a machine busy with something else keeps, too
        pytest.param(60, 10.0, 10_000, (), id="a-minute", marks=pytest.mark.chaos),  # the default
        pytest.param(60, 10.0, 10_000, ("ids",), id="a-minute-as-behind-a-proxy", marks=pytest.mark.chaos),
    ],
)
def test_ten_times_the_sustainable_rate_is_answered_or_refused_at_once(
    start, tuning, examples, seconds, closed_s, timeout_ms, ids
):
    service = start(timeout_ms=timeout_ms)
    before, sent, probes, cores, after = asyncio.run(scenario(service, examples["cat"], seconds, closed_s, ids))
    took = [answered - begun for begun, answered in sent["good"]]
    goodput = sum(answered <= sent["sending_s"] for _, answered in sent["good"]) / sent["sending_s"]
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    result = {
        "command": "pytest -m chaos tests/e2e/test_overload.py",
        "tuning": tuning,  # two starts may choose otherwise, and differ by it
        "before": before,
        "offered_per_s": round(sent["sent"] / sent["sending_s"], 1),
        "seconds": round(sent["sending_s"], 1),
        "sender_cores": round(sent["cores"], 2),
        "service_cores": round(cores, 2),
        "statuses": sent["statuses"],
        "sent": sent["sent"],
        "sent_late": sent["sent_late"],
        "unanswered": sent["unanswered"],
        "429_without_retry_after": sent["429_without_retry_after"],
        "goodput_per_s": round(goodput, 1),
        "goodput_share": round(goodput / before["requests_per_s"], 3),
        "accepted_p50_s": round(cuts[49], 3),
        "accepted_p99_s": round(cuts[98], 3),
        "accepted_slowest_s": round(max(took), 3),
        "queue_empty_after_s": round(max(answered for _, answered in sent["good"]) - sent["sending_s"], 3),
        "after_2_s_per_s": round(after, 1),
        "after_2_s_share": round(after / before["requests_per_s"], 3),
        "probes": len(probes),
        "probe_p50_ms": round(statistics.median(probes) * 1e3, 1),
        "probe_p99_ms": round(statistics.quantiles(probes, n=100, method="inclusive")[98] * 1e3, 1),
        "probe_slowest_ms": round(max(probes) * 1e3, 1),
    }
    if seconds == 60:
        write(f"reliability/overload{'_ids' if ids else ''}.json", result)
    assert set(sent["statuses"]) == {"200", "429"}, result
    assert sent["429_without_retry_after"] == 0
    assert sent["unanswered"] == 0
    assert max(took) <= timeout_ms / 1000 + 1.0  # the client's side of it, too
    ask = {"content": examples["cat"], "headers": {"content-type": "image/png"}}
    assert httpx.post(f"{service.url}/predict", timeout=60, **ask).status_code == 200
    assert service.metric("resnet_queue_images") == 0
    assert service.stop() == 0
    assert "Traceback" not in service.log
    if seconds == 60:
        # Looser than what is meant, for machines that are busy with something else: see docs/reliability.md.
        assert result["goodput_share"] >= 0.5, result
        assert result["after_2_s_share"] >= 0.7, result
