"""Batches whole and in pieces beside a busy neighbour: whose turn it is, what is compared, what the neighbour does."""

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import busy, neighbour, processes
from tests.conftest import ROOT


def test_services_go_in_turns_and_are_compared_round_by_round(monkeypatch):
    services = {name: SimpleNamespace(url=name) for name in ("whole", "pieces", "another")}
    rates = iter([100.0, 110.0, 90.0, 240.0, 220.0, 200.0, 50.0, 65.0, 50.0])
    settled, loaded = [], []

    def one_round(_wrk, service, clients, seconds):
        assert (clients, seconds) == (2, 3)
        loaded.append(service.url)
        return {"requests_per_s": next(rates)}

    monkeypatch.setattr(neighbour, "CLIENTS", (2,))
    monkeypatch.setattr(neighbour, "one_round", one_round)
    monkeypatch.setattr(neighbour.closed_loop, "run", lambda _wrk, url, *_: settled.append(url))
    figures = neighbour.compare(None, services, 3, 3)["2"]
    assert settled == ["whole/predict", "pieces/predict", "another/predict"]
    assert loaded == [*services, *reversed(services), *services]
    assert figures["requests_per_s"] == {"whole": 100.0, "pieces": 110.0, "another": 90.0}
    assert figures["ratios"] == {"pieces": [1.1, 1.1, 1.3], "another": [0.9, 1.2, 1.0]}
    assert figures["of_whole"] == {"pieces": 1.1, "another": 1.0}
    assert [turn["whole"]["requests_per_s"] for turn in figures["rounds"]] == [100.0, 200.0, 50.0]


def test_services_differ_by_how_batches_are_split_alone(monkeypatch):
    tuning = {"batch_sizes": (1, 2), "precision": "bfloat16", "runtime": "openvino"}
    given, happened, written = [], [], {}

    @contextmanager
    def service_process(log_path, **settings):
        given.append(settings)
        yield SimpleNamespace(wait_ready=lambda: happened.append("ready"))

    @contextmanager
    def busy_neighbour():
        happened.append("neighbour")
        yield 0

    monkeypatch.setattr(sys, "argv", ["neighbour", "--rounds", "2"])
    monkeypatch.setattr(neighbour, "available_cores", lambda: 2)
    monkeypatch.setattr(neighbour.closed_loop, "find_or_download_wrk", lambda: None)
    monkeypatch.setattr(neighbour, "load_engine", lambda _: SimpleNamespace(tuning=tuning, close=lambda: None))
    monkeypatch.setattr(neighbour, "service_process", service_process)
    monkeypatch.setattr(busy, "neighbour", busy_neighbour)
    monkeypatch.setattr(neighbour, "compare", lambda *_: happened.append("compared") or {})
    monkeypatch.setattr(neighbour, "write", lambda name, result: written.update({name: result}))
    neighbour.main()
    same = {"device": "cpu", "batch_sizes": (1, 2), "precision": "bfloat16", "runtime": "openvino"}
    assert given == [same | {"split_batches": False}, same | {"split_batches": True}]
    assert happened == ["ready"] * 2 + ["compared", "neighbour", "compared"]
    assert written["neighbour.json"]["command"] == "python -m benchmarks.neighbour --rounds 2 --seconds 3"


def test_one_core_has_nothing_to_compare(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["neighbour"])
    monkeypatch.setattr(neighbour, "available_cores", lambda: 1)
    with pytest.raises(SystemExit, match="one core"):
        neighbour.main()


def test_the_neighbour_is_there_while_services_are_compared_and_not_after(monkeypatch):
    pids = []
    start = busy.neighbour

    @contextmanager
    def watched():
        with start() as pid:
            pids.append(pid)
            yield pid

    def compare(*_):
        while not processes.cpu_seconds(pids):
            pass
        return {"8": {}}

    monkeypatch.setattr(busy, "neighbour", watched)
    monkeypatch.setattr(neighbour, "compare", compare)
    figures, cores = neighbour.beside_neighbour(None, {}, 1, 1)
    assert figures == {"8": {}}
    assert cores > 0
    assert not Path(f"/proc/{pids[0]}").exists()


def test_the_neighbour_takes_its_part_of_a_core_in_short_bits(monkeypatch):
    clock, slept = [0.0], []

    def perf_counter():
        clock[0] += 0.00001
        return clock[0]

    monkeypatch.setattr(busy.time, "perf_counter", perf_counter)
    monkeypatch.setattr(busy.time, "sleep", slept.append)
    busy.be_busy(lambda: len(slept) < 10)
    assert slept == [pytest.approx(0.0007)] * 10
    assert clock[0] / (clock[0] + sum(slept)) == pytest.approx(0.3, abs=0.02)


def test_the_neighbour_ends_with_who_started_it():
    """It has inherited the pipe, whose end comes when both have ended."""
    code = "import os; from benchmarks.busy import neighbour; n = neighbour(); print(n.__enter__()); os._exit(0)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, timeout=60)
