"""The process's one OpenVINO core, and whether OpenVINO is faster in bfloat16 here. Nothing here needs torch."""

from __future__ import annotations

from functools import cache

import numpy as np
import openvino
from openvino import opset13 as ops

from model.hardware.processor import processor_flags
from model.hardware.timing import is_clearly_faster

# A convolution like those of a network in the middle: 0.6 thousand million operations, milliseconds.
IMAGES, CHANNELS, SIDE = 8, 128, 16


@cache
def core() -> openvino.Core:
    """Return the process's one OpenVINO core, which is never given back.

    The CPU plugin gives the thread that loads it a signal stack of its own, and unmaps it when the last core goes, from
    whatever thread that happens in: the next signal to the first thread would then end the process.
    """
    return openvino.Core()


@cache
def has_fast_bfloat16() -> bool:
    """Whether OpenVINO is faster in bfloat16 than in float32 on this CPU, as on all with matrix tiles (AMX).

    That the processor has other instructions for it says little: on one with AVX512-BF16 it ran at 0.6 times the rate
    of float32, on another one at twice the rate. There a small convolution says so, in 0.1 s.
    """
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    if "amx_bf16" in processor_flags():  # beside another program's burst a measurement might say otherwise
        return True
    return is_clearly_faster(_convolution("bf16").infer, than=_convolution("f32").infer)


def _convolution(precision: str) -> openvino.InferRequest:
    images = ops.parameter([IMAGES, CHANNELS, SIDE, SIDE], np.float32)
    weight = np.full((CHANNELS, CHANNELS, 3, 3), 0.5, np.float32)
    model = openvino.Model([ops.convolution(images, weight, [1, 1], [1, 1], [1, 1], [1, 1])], [images], "probe")
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": precision}
    request = core().compile_model(model, "CPU", options).create_infer_request()
    request.infer([np.full((IMAGES, CHANNELS, SIDE, SIDE), 0.5, np.float32)])
    return request
