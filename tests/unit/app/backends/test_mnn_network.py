"""A network in MNN: its files, its sessions, and what it leaves to others meanwhile."""

import errno
import gc
import subprocess
import sys
import threading
from unittest.mock import Mock

import numpy as np
import pytest

from app.backends import mnn_network
from app.backends.mnn_network import MnnModel, MnnNetwork
from app.engine_errors import EngineOutOfMemory
from tests.conftest import ROOT


@pytest.fixture(scope="module")
def model(source):
    return MnnModel(source)


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_its_files_are_there_as_long_as_a_network_may_need_them(source, monkeypatch, tmp_path, platform):
    if platform == "linux" and sys.platform != "linux":
        pytest.skip("memory has no path here")
    monkeypatch.setattr(mnn_network.sys, "platform", platform)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    network = MnnNetwork(MnnModel(source), 1)
    gc.collect()
    assert len(list(tmp_path.iterdir())) == (platform != "linux")
    files = [network._model.path, network._model.weights_path]
    assert files[0].stat().st_size < 10_000 < 40_000_000 < files[1].stat().st_size
    assert files[1].resolve().is_relative_to(tmp_path)  # on the disk: it is what takes the room
    network._begin()
    del network
    gc.collect()
    assert not any(file.exists() for file in files)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes a folder for temporary files")
@pytest.mark.parametrize("why", ["no folder", "no room"])
def test_no_disk_is_needed(source, monkeypatch, tmp_path, why):
    if why == "no folder":
        monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    else:
        monkeypatch.setattr("os.posix_fallocate", Mock(side_effect=OSError(errno.ENOSPC, "no space left")))
    assert MnnNetwork(MnnModel(source), 1).logits(pictures(2)).shape == (2, 10)


class Interpreter:
    """Stands before MNN's; `run` is what becomes of a batch."""

    def __init__(self, behind, run):
        self._behind, self._run = behind, run

    def runSession(self, session):  # noqa: N802
        return self._run(session)

    def __getattr__(self, name):
        return getattr(self._behind, name)


def test_a_batch_without_memory_is_told_apart_and_the_next_one_has_a_new_session(model):
    network = MnnNetwork(model, 2)
    expected = network.logits(pictures(3))
    behind, before = network._interpreter, network._session
    network._interpreter = Interpreter(behind, lambda _session: 3)
    with pytest.raises(EngineOutOfMemory):
        network.logits(pictures(3))
    network._interpreter = behind
    assert network._session is not before
    np.testing.assert_array_equal(network.logits(pictures(3)), expected)


@pytest.fixture
def kept_lock():
    """No thread takes Python's lock from another one, which has to let go of it."""
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    yield
    sys.setswitchinterval(before_s)


def test_other_threads_go_on_while_a_batch_is_computed(model, kept_lock):
    """As the event loop has to: of MNN's two interfaces only the older one lets go of Python's lock."""
    network = MnnNetwork(model, 1)
    begun, noticed = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: begun.wait() and noticed.set())
    other.start()
    seen = []
    behind = network._interpreter

    def run(session):
        begun.set()
        for _ in range(1000):  # a busy machine may not come to the other thread during one
            code = behind.runSession(session)
            if noticed.is_set():
                break
        seen.append(noticed.is_set())
        return code

    network._interpreter = Interpreter(behind, run)
    network.logits(pictures(32))
    other.join()
    assert seen == [True]


PRINTING = "from app.backends.mnn_network import mnn; print('before'); mnn(); print('after')"


def test_nothing_but_answers_is_on_standard_output():
    ended = subprocess.run([sys.executable, "-c", PRINTING], check=True, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "before\nafter\n"
