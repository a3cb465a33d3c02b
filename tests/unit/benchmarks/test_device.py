"""What is measured on a CPU is measured there also where there is a GPU."""

from types import SimpleNamespace

import pytest

from benchmarks import large_requests, memory, open_loop, processes, returning_clients
from benchmarks.peers.contenders import CONTENDERS
from benchmarks.peers.server import ContenderError, running


class Started(Exception):
    """A service would have been started."""


@pytest.mark.parametrize("benchmark", [large_requests, memory, open_loop, returning_clients])
def test_engine_and_service_are_on_the_cpu(benchmark, monkeypatch):
    devices = []

    def load_engine(settings):
        devices.append(settings.device)
        return SimpleNamespace(tuning={}, batch_sizes=(32,))

    def service_process(_log, device=None, **_settings):
        devices.append(device)
        raise Started

    monkeypatch.setenv("RESNET_DEVICE", "cuda")
    monkeypatch.setattr("sys.argv", [benchmark.__name__])
    monkeypatch.setattr("benchmarks.closed_loop.find_or_download_wrk", lambda: None)
    monkeypatch.setattr(benchmark, "load_engine", load_engine, raising=False)
    monkeypatch.setattr(benchmark, "service_process", service_process)
    with pytest.raises(Started):
        benchmark.main()
    assert set(devices) == {"cpu"}


def test_all_contenders_are_told_to_take_the_cpu(monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nenv | grep RESNET\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("RESNET_DEVICE", "cuda")
    monkeypatch.setattr(processes, "end", lambda *_: None)  # which ends all children of this process, other tests' too
    with pytest.raises(ContenderError, match=r"\nRESNET_DEVICE=cpu$"), running(CONTENDERS[0], python, "null"):
        pass
