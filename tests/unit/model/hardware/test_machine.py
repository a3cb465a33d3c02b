"""What a record says of the code that made it."""

import subprocess
import sys

import pytest
import torch

from model.hardware import machine


@pytest.fixture
def git(tmp_path):
    """Run git in a repository with one commit of code.py and record.json."""

    def run(*arguments):
        names = ("-c", "user.name=x", "-c", "user.email=x@y")
        done = subprocess.run(["git", *names, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "-q")
    for name in ("code.py", "record.json"):
        (tmp_path / name).write_text("1")
    run("add", ".")
    run("commit", "-q", "-m", "first")
    return run


def test_a_record_names_its_commit_and_whether_the_code_was_changed(git, tmp_path):
    commit = git("rev-parse", "--short", "HEAD")
    (tmp_path / "record.json").write_text("2")
    (tmp_path / "untracked.py").write_text("2")
    assert machine._commit(tmp_path) == {"commit": commit}
    (tmp_path / "code.py").write_text("2")
    assert machine._commit(tmp_path) == {"commit": f"{commit}+"}


def test_without_a_repository_or_without_git_there_is_no_commit(git, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    assert machine._commit(tmp_path / "inner") == {}, "whatever is around it is something else"
    monkeypatch.setenv("PATH", "")
    assert machine._commit(tmp_path) == {}


@pytest.mark.parametrize(("device", "gpu"), [("cuda:1", "the GPU cuda:1"), ("cuda", "the GPU cuda"), ("cpu", None)])
def test_a_record_names_the_gpu_that_was_used(monkeypatch, device, gpu):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"the GPU {device}")
    assert machine.describe(device)["gpu"] == gpu


def test_without_a_gpu_none_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert machine.describe()["gpu"] is None


def test_who_measures_the_peers_memory_has_no_torch_to_share_with_them():
    """A page that two processes share counts by half for each."""
    code = "import sys, benchmarks.peers.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
