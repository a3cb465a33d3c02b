"""Batches in MNN beside single images in OpenVINO: when, and what happens where MNN does not do."""

import numpy as np
import pytest

from app.backends import mnn_backend
from app.backends.mnn_backend import MNN_FROM, MnnBackend, open_mnn, open_mnn_if_faster
from app.backends.mnn_network import MnnNetwork
from app.engine_errors import EngineOutOfMemory, RuntimeUnfit
from app.settings import Settings

FLOATS = Settings(device="cpu", precision="float32", threads=2)


@pytest.fixture
def backend(source):
    return open_mnn(source, FLOATS)


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


def test_openvino_has_no_model_for_pieces_beside_mnn(backend):
    assert len(backend._single._compiled) == 1


def test_batches_of_changing_sizes_are_answered_as_openvino_does(backend):
    images = pictures(20)
    expected = np.concatenate([backend._single.logits(images[i : i + 1]) for i in range(20)])
    for count in (2, 20, 7, 20, 3):
        np.testing.assert_allclose(backend.logits(images[:count]), expected[:count], atol=1e-4)


@pytest.mark.parametrize(
    ("openvino", "mnn", "faster"), [(1.0, 0.8, True), (1.0, 0.95, False), (1.0, 2.0, False)], ids=str
)
def test_a_gain_of_less_than_a_tenth_is_left_to_openvino(monkeypatch, openvino, mnn, faster):
    monkeypatch.setattr(mnn_backend, "speedup", lambda *_: openvino / mnn)
    assert mnn_backend._is_faster(None, None, pictures(1)) is faster


class Wrong(MnnNetwork):
    """Off by a thousandth of the largest logit: where two classes are about as likely, that matters."""

    def logits(self, images):
        logits = super().logits(images)
        return logits + 0.99e-3 * np.abs(logits).max() * np.float32([1, -1] * 5)


class NoNumbers(MnnNetwork):
    def logits(self, images):
        return super().logits(images) * np.nan


def broken(*_):
    raise OSError("no room for temporary files")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Wrong, "probabilities differ from OpenVINO's by 0.00"),
        (NoNumbers, "probabilities differ from OpenVINO's by nan"),
        (broken, "no room"),
    ],
)
def test_mnn_that_does_not_work_is_left_out_unless_it_was_asked_for(source, monkeypatch, caplog, made, message):
    monkeypatch.setattr(mnn_backend, "MnnNetwork", made)
    assert open_mnn_if_faster(source, FLOATS) is None
    assert any(text.startswith("MNN is left out: ") and message in text for text in caplog.messages)
    with pytest.raises(RuntimeUnfit, match=f"runtime mnn does not work here: .*{message}"):
        open_mnn(source, FLOATS)


def no_memory(*_):
    raise MemoryError


def test_want_of_memory_says_nothing_of_mnn(source, monkeypatch, caplog):
    """Taken for a fault of MNN, it would have a reload go on with a slower runtime, for good."""
    monkeypatch.setattr(mnn_backend, "MnnNetwork", no_memory)
    with pytest.raises(EngineOutOfMemory):
        open_mnn(source, FLOATS)
    assert open_mnn_if_faster(source, FLOATS) is None
    assert "MNN is left out: MemoryError()" in caplog.messages
