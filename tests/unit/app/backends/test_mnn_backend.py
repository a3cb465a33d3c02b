"""Batches in MNN beside single images in OpenVINO: when, and what happens where MNN does not do."""

import numpy as np
import pytest

from app.backends import mnn_backend, openvino_backend
from app.backends.backend import EngineUnavailable
from app.backends.mnn_backend import MNN_FROM, MnnBackend, open_on_cpu
from app.backends.mnn_network import Mnn
from app.engine import load_engine
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint

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
    monkeypatch.setattr(mnn_backend, "speedup", lambda *_: openvino / mnn)
    assert mnn_backend._is_faster(None, None, pictures(1)) is faster


@pytest.mark.parametrize(
    "changes", [{"runtime": "openvino"}, {"split_batches": True}, {"precision": "bfloat16"}, {"precision": "int8"}]
)
def test_what_is_openvinos_is_opened_at_once(source, monkeypatch, changes):
    monkeypatch.setattr(mnn_backend, "MnnModel", lambda *_: pytest.fail("opened"))
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


def test_without_mnn_openvino_computes(source, monkeypatch):
    monkeypatch.setattr(mnn_backend, "find_spec", lambda _: None)
    monkeypatch.setattr(mnn_backend, "MnnModel", lambda *_: pytest.fail("opened"))
    assert open_on_cpu(source, FLOATS).runtime == "openvino"
