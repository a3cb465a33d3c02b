import json
import os
import signal

import pytest

from app.cli import build_parser
from app.commands import reload
from app.pidfile import pid_file


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(reload, "POLL_S", 0)


def health(status="ready", finished=0, running=False, outcome=None, version="new", files_refused=()):
    reloads = {"running": running, "finished": finished, "outcome": outcome, "files_refused": files_refused}
    return {"status": status, "reason": "so it is", "model": {"version": version}, "reload": reloads}


@pytest.fixture
def answers(monkeypatch):
    """What /health answers, one after another, the last one again and again."""
    left = [health(version="old")]
    monkeypatch.setattr(reload, "get", lambda *_, verify: (200, json.dumps(left.pop(0) if len(left) > 1 else left[0])))
    return left


@pytest.fixture
def signals(monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda *one: sent.append(one))
    return sent


def run(*arguments):
    parsed = build_parser().parse_args(["reload", *arguments])
    return parsed.run(parsed)


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        ("succeeded", 0, "version new serves in place of old"),
        ("unchanged", 0, "version new serves already"),
        ("refused", 1, "refused"),
    ],
)
def test_it_signals_the_process_of_the_port_and_waits_for_the_outcome(answers, signals, capsys, outcome, code, words):
    answers += [health(running=True), health(finished=1, running=True), health(finished=2, outcome=outcome)]
    with pid_file("127.0.0.1", 8123):
        assert run("--port", "8123") == code
    assert signals == [(os.getpid(), signal.SIGHUP)]
    assert words in capsys.readouterr().out


def test_keys_that_are_refused_are_a_failure_whatever_the_checkpoint_is(answers, signals, capsys):
    answers.append(health(finished=1, outcome="succeeded", files_refused=["keys", "certificate"]))
    assert run("--pid", "4242") == 1
    printed = capsys.readouterr().out
    assert "version new serves" in printed
    assert "keys: refused" in printed
    assert "certificate: refused" in printed


def test_a_service_of_an_earlier_release_tells_of_no_files(answers, signals):
    answers.append(health(finished=1, outcome="succeeded"))
    del answers[-1]["reload"]["files_refused"]
    assert run("--pid", "4242") == 0


def test_a_process_can_be_named(answers, signals):
    answers.append(health(finished=1, outcome="succeeded"))
    assert run("--pid", "4242") == 0
    assert signals == [(4242, signal.SIGHUP)]


def fails_with(words, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert str(stopped.value).startswith("resnet: error: ")
    assert "\n" not in str(stopped.value)
    assert words in str(stopped.value)


def test_without_a_service_nobody_is_signalled(signals, own_port):
    fails_with("no service is known to serve port 8123", "--port", "8123")
    url = f"http://127.0.0.1:{own_port}"
    fails_with(f"no answer from {url}", "--pid", "4242", "--url", url)
    assert signals == []


def test_a_service_that_is_not_ready_is_not_signalled(answers, signals):
    answers[:] = [health(status="starting")]
    fails_with("not reloaded: so it is", "--pid", "4242")
    assert signals == []


def test_a_service_that_ends_meanwhile_or_gives_no_outcome_is_an_error(answers, signals):
    answers.append(health(status="draining"))
    fails_with("not reloaded: so it is", "--pid", "4242")
    answers[:] = [health()]
    fails_with("no outcome after 0.01 s", "--pid", "4242", "--timeout", "0.01")


def test_what_is_not_our_service_is_an_error(monkeypatch, signals):
    monkeypatch.setattr(reload, "get", lambda *_, verify: (200, "<html>"))
    fails_with("does not answer as this service does", "--pid", "4242")
    assert signals == []


@pytest.mark.parametrize("pid", ["0", "-1", "x"])
def test_a_pid_that_would_signal_more_than_one_process_is_refused(answers, signals, capsys, pid):
    answers.append(health(finished=1, outcome="succeeded"))
    with pid_file("127.0.0.1", 8123), pytest.raises(SystemExit):
        run("--pid", pid, "--port", "8123")
    assert signals == []
    assert "--pid" in capsys.readouterr().err
