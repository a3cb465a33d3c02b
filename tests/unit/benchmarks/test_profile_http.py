from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from benchmarks import profile_http
from benchmarks.peers.engine import ENGINE_VARIABLE, PORT_VARIABLE
from benchmarks.profile_http import tabulate

LOOP = "<module> (ours.py:9);asyncio_run (uvicorn/_compat.py:30)"


def test_functions_are_counted_once_a_sample_whatever_their_lines_and_other_threads_are_left_out():
    total, within, at_top = tabulate(
        f"{LOOP};read (a.py:1);read (a.py:2) 3\n{LOOP};read (a.py:7) 2\n{LOOP} 1\n_worker (thread.py:81) 90\n"
    )
    assert total == 6
    assert within["read (a.py)"] == at_top["read (a.py)"] == 5
    assert at_top["asyncio_run (uvicorn/_compat.py)"] == 1
    assert "_worker (thread.py)" not in within


@pytest.fixture
def profile(monkeypatch, tmp_path):
    """Run the command with a py-spy that is a script, if there is one, and into a folder that is not there yet."""

    def run(script):
        if script is not None:
            (tmp_path / "py-spy").write_text(f"#!/bin/sh\n{script}\n")
            (tmp_path / "py-spy").chmod(0o755)
        profile_http.main()
        return (tmp_path / "new" / "records" / "profile_http.txt").read_text()

    service = SimpleNamespace(wait_ready=lambda: None, url="", process=SimpleNamespace(pid=1))
    for name in (ENGINE_VARIABLE, PORT_VARIABLE):  # the command sets them: they are to be as before
        monkeypatch.setenv(name, "")
    monkeypatch.setattr(profile_http.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(profile_http, "RECORDS", tmp_path / "new" / "records")
    monkeypatch.setattr(profile_http, "service_process", lambda *_, **__: nullcontext(service))
    monkeypatch.setattr(profile_http.closed_loop, "find_or_download_wrk", lambda: None)
    monkeypatch.setattr(profile_http.closed_loop, "run", lambda *_: {"requests_per_s": 5.0})
    return run


def test_the_table_is_written_into_a_new_folder(profile):
    text = profile(f'echo "{LOOP};read (a.py:1) 4" >"$5"')
    first, second, *_ = text.splitlines()
    assert first == "64 clients, an engine that answers at once, 5.0 requests/s while being sampled"
    assert second.startswith("4 samples, ")
    assert "100.0%  100.0%  read (a.py)\n" in text


def test_why_py_spy_failed_is_told(profile, capfd):
    with pytest.raises(SystemExit, match=r"py-spy ended with 3\. It has to be allowed to trace"):
        profile("echo Permission Denied >&2; exit 3")
    assert capfd.readouterr().err == "Permission Denied\n"


def test_without_py_spy_it_is_named(profile):
    with pytest.raises(SystemExit, match=r"there is no .*/py-spy: pip install"):
        profile(None)
