"""Whether bfloat16 is the faster one for OpenVINO: a measurement says so, where the processor has it at all."""

from unittest.mock import Mock

import pytest

from model.runtimes import openvino_core
from model.runtimes.openvino_core import core, has_fast_bfloat16


class Core:
    def get_property(self, *_):
        return ["FP32", "BF16"]


@pytest.mark.parametrize(("slow", "expected"), [("f32", True), ("bf16", False)])
def test_the_quicker_convolution_wins(monkeypatch, slow, expected):
    monkeypatch.setattr(openvino_core, "core", Core)
    monkeypatch.setattr(openvino_core, "processor_flags", lambda: {"avx512_bf16"})
    monkeypatch.setattr(openvino_core, "_convolution", lambda precision: Mock(infer=precision))
    monkeypatch.setattr(openvino_core, "is_clearly_faster", lambda way, than: (way, than) == ("bf16", slow))
    assert has_fast_bfloat16.__wrapped__() is expected


def test_with_matrix_tiles_a_neighbours_burst_changes_nothing(monkeypatch):
    monkeypatch.setattr(openvino_core, "core", Core)
    monkeypatch.setattr(openvino_core, "processor_flags", lambda: {"avx512_bf16", "amx_bf16"})
    monkeypatch.setattr(openvino_core, "is_clearly_faster", lambda *_args, **_options: False)
    assert has_fast_bfloat16.__wrapped__() is True


@pytest.mark.parametrize("flags", [set(), {"amx_bf16"}], ids=["", "the system keeps it from programs"])
def test_a_processor_without_it_is_not_measured(monkeypatch, flags):
    monkeypatch.setattr(Core, "get_property", lambda *_: ["FP32", "INT8"])
    monkeypatch.setattr(openvino_core, "core", Core)
    monkeypatch.setattr(openvino_core, "processor_flags", lambda: flags)
    monkeypatch.setattr(openvino_core, "_convolution", lambda _: pytest.fail("measured"))
    assert has_fast_bfloat16.__wrapped__() is False


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_what_is_measured_is_a_convolution(precision):
    request = openvino_core._convolution(precision)
    request.infer()
    found = request.get_output_tensor().data
    assert found.shape == (openvino_core.IMAGES, openvino_core.CHANNELS, openvino_core.SIDE, openvino_core.SIDE)
    assert found[:, :, 1:-1, 1:-1] == pytest.approx(openvino_core.CHANNELS * 9 * 0.5 * 0.5)


def test_there_is_one_core():
    assert core() is core()
