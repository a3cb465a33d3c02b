"""Batches in MNN beside single images in OpenVINO: when, and what happens where MNN does not do."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from app import mnn_backend, openvino_backend
from app.batches import EngineOutOfMemory
from app.engine import EngineUnavailable, load_engine
from app.mnn_backend import MNN_FROM, Mnn, MnnBackend, open_on_cpu
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from tests.conftest import ROOT

FLOATS = Settings(device="cpu", precision="float32", threads=2)


@pytest.fixture(scope="module")
def source():
    return checkpoint.load(SHIPPED_WEIGHTS)


@pytest.fixture
def backend(source):
    made = open_on_cpu(source, FLOATS.model_copy(update={"runtime": "mnn"}))
    assert isinstance(made, MnnBackend)
    return made


def pictures(count):
    return np.random.default_rng(0).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)


class Noting:
    def __init__(self, name, used):
        self.name, self.used = name, used

    def logits(self, images):
        self.used.append(self.name)
        return np.zeros((len(images), 10), np.float32)


@pytest.mark.parametrize(("count", "way"), [(1, "single"), (MNN_FROM, "batches"), (40, "batches")])
def test_a_single_image_does_without_mnn(count, way):
    used = []
    MnnBackend(Noting("single", used), Noting("batches", used)).logits(pictures(count))
    assert used == [way]


def test_batches_of_changing_sizes_are_answered_as_openvino_does(backend):
    images = pictures(20)
    expected = np.concatenate([backend._single.logits(images[i : i + 1]) for i in range(20)])
    for count in (2, 20, 7, 20, 3):
        np.testing.assert_allclose(backend.logits(images[:count]), expected[:count], atol=1e-4)


@pytest.mark.parametrize(("faster", "runtime"), [(True, "mnn"), (False, "openvino")])
def test_the_faster_one_is_taken_and_what_is_given_is_not_measured(source, monkeypatch, faster, runtime):
    monkeypatch.setattr(mnn_backend, "_is_faster", lambda *_: faster)
    settings = FLOATS.model_copy(update={"batch_sizes": (1, 2)})
    first = load_engine(settings)
    assert first.card["runtime"] == runtime
    monkeypatch.setattr(mnn_backend, "_is_faster", lambda *_: not faster)
    assert load_engine(settings.model_copy(update=first.tuning)).tuning == first.tuning


@pytest.mark.parametrize(
    ("openvino", "mnn", "faster"), [(1.0, 0.8, True), (1.0, 0.95, False), (1.0, 2.0, False)], ids=str
)
def test_a_gain_of_less_than_a_tenth_is_left_to_openvino(monkeypatch, openvino, mnn, faster):
    monkeypatch.setattr(mnn_backend, "gain", lambda *_: openvino / mnn)
    assert mnn_backend._is_faster(None, None, pictures(1)) is faster


@pytest.mark.parametrize(
    "changes", [{"runtime": "openvino"}, {"split_batches": True}, {"precision": "bfloat16"}, {"precision": "int8"}]
)
def test_what_is_openvinos_is_opened_at_once(source, monkeypatch, changes):
    monkeypatch.setattr(mnn_backend, "Mnn", lambda *_: pytest.fail("opened"))
    assert open_on_cpu(source, FLOATS.model_copy(update=changes)).runtime == "openvino"


def test_asked_for_by_name_it_computes_in_float32_on_every_processor(source, monkeypatch):
    monkeypatch.setattr(openvino_backend, "has_fast_bfloat16", lambda: True)
    made = open_on_cpu(source, Settings(device="cpu", runtime="mnn"))
    assert (made.runtime, made.dtype, made._single.dtype) == ("mnn", "float32", "float32")


class Wrong(Mnn):
    def logits(self, images):
        return super().logits(images) * 1.01


def broken(*_):
    raise OSError("no room for temporary files")


@pytest.mark.parametrize(("made", "message"), [(Wrong, "logits differ from OpenVINO's by"), (broken, "no room")])
def test_mnn_that_does_not_work_is_left_out_unless_it_was_asked_for(source, monkeypatch, caplog, made, message):
    monkeypatch.setattr(mnn_backend, "Mnn", made)
    assert open_on_cpu(source, FLOATS).runtime == "openvino"
    assert any(text.startswith("MNN is left out: ") and message in text for text in caplog.messages)
    with pytest.raises(EngineUnavailable, match=f"runtime mnn does not work here: .*{message}"):
        open_on_cpu(source, FLOATS.model_copy(update={"runtime": "mnn"}))


@pytest.mark.parametrize("platform", ["linux", "darwin"])
def test_its_model_is_there_for_as_long_as_it_is_read(monkeypatch, tmp_path, platform):
    if platform == "linux" and sys.platform != "linux":
        pytest.skip("memory has no path here")
    monkeypatch.setattr(mnn_backend.sys, "platform", platform)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with mnn_backend._as_file(bytearray(b"model")) as path:
        assert Path(path).read_bytes() == b"model"
        assert len(list(tmp_path.iterdir())) == (platform != "linux")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it takes a folder for temporary files")
def test_no_disk_is_needed(source, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert open_on_cpu(source, FLOATS.model_copy(update={"runtime": "mnn"})).runtime == "mnn"


def test_without_mnn_openvino_computes(source, monkeypatch):
    monkeypatch.setattr(mnn_backend, "find_spec", lambda _: None)
    monkeypatch.setattr(mnn_backend, "Mnn", lambda *_: pytest.fail("opened"))
    assert open_on_cpu(source, FLOATS).runtime == "openvino"


class Interpreter:
    """Stands before MNN's; `run` is what becomes of a batch."""

    def __init__(self, behind, run):
        self._behind, self._run = behind, run

    def runSession(self, session):  # noqa: N802
        return self._run(session)

    def __getattr__(self, name):
        return getattr(self._behind, name)


def test_a_batch_without_memory_is_told_apart_and_the_next_one_has_a_new_session(source):
    network = Mnn(source, 2)
    expected = network.logits(pictures(3))
    behind, before = network._interpreter, network._session
    network._interpreter = Interpreter(behind, lambda _session: 3)
    with pytest.raises(EngineOutOfMemory):
        network.logits(pictures(3))
    network._interpreter = behind
    assert network._session is not before
    np.testing.assert_array_equal(network.logits(pictures(3)), expected)


def test_other_threads_go_on_while_a_batch_is_computed(source):
    """As the event loop has to: of MNN's two interfaces only the older one lets go of Python's lock."""
    network = Mnn(source, 1)
    begun, noticed = threading.Event(), threading.Event()
    other = threading.Thread(target=lambda: begun.wait() and noticed.set())
    other.start()
    seen = []
    behind = network._interpreter

    def run(session):
        begun.set()
        code = behind.runSession(session)
        seen.append(noticed.is_set())
        return code

    network._interpreter = Interpreter(behind, run)
    network.logits(pictures(32))
    other.join()
    assert seen == [True]


PRINTING = "from app.mnn_backend import mnn; print('before'); mnn(); print('after')"


def test_nothing_but_answers_is_on_standard_output():
    ended = subprocess.run([sys.executable, "-c", PRINTING], check=True, cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout == "before\nafter\n"
