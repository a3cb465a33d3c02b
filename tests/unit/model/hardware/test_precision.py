"""Whether bfloat16 is the faster one: what the processor says decides where it can, a measurement where it cannot."""

import pytest
import torch

from model.hardware import precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("amx", "avx512", "measured", "expected"),
    [
        (True, True, False, True),
        (False, True, True, True),
        (False, True, False, False),
        (False, False, True, False),
    ],
)
def test_a_measurement_decides_only_where_the_processor_leaves_it_open(monkeypatch, amx, avx512, measured, expected):
    has = {"_is_amx_tile_supported": amx, "_is_avx512_bf16_supported": avx512}
    monkeypatch.setattr(precision, "_cpu_has", has.__getitem__)
    monkeypatch.setattr(precision, "_is_measured_faster", lambda: measured)
    assert precision.has_fast_bfloat16(CPU) is expected


@pytest.mark.parametrize(("slow", "expected"), [(torch.float32, True), (torch.bfloat16, False)])
def test_the_quicker_product_wins(monkeypatch, slow, expected):
    def is_clearly_faster(way, than):
        assert way().dtype is not than().dtype
        return than().dtype is slow

    monkeypatch.setattr(precision, "is_clearly_faster", is_clearly_faster)
    assert precision._is_measured_faster.__wrapped__() is expected


def test_a_torch_that_cannot_say_has_none(monkeypatch):
    for question in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
        monkeypatch.delattr(torch.cpu, question, raising=False)
    assert precision.has_fast_bfloat16(CPU) is False
