"""A network as an OpenVINO model, in floats or quantised to eight-bit integers.

    uint8 (N, 3, S, S) -> normalise -> stem -> stages -> mean over space -> head -> float32 logits (N, classes)

The model is written down operation by operation rather than traced out of PyTorch: it takes a tenth of a second in
place of two, and the points where a quantised network rounds are chosen here. To make it and to run it takes OpenVINO
and NumPy, no torch, no compiler and no file.

Quantisation is the post-training kind (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", arXiv:1712.05877): weights symmetric with one scale an output channel, activations
with one scale a tensor, whose range is what a few images show. OpenVINO merges the rounding into the convolutions
between, which then compute in integers.

Where a processor adds products of such integers in sixteen bits (x86 without VNNI), two large ones are more than fits,
and the sum is silently cut off. Weights of seven bits are the usual way around it (OpenVINO's "Saturation (overflow)
Issue Workaround"); whether this processor needs them is found out on itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from model.architecture import Block, Convolution, Structure
from model.folded import Layer
from model.openvino_core import core
from model.transforms import Triple

Layers = Mapping[str, Layer]
Range = tuple[float, float]
Ranges = dict[str, Range]

WEIGHT_LEVELS = 255  # -127 to 127: symmetric
ACTIVATION_LEVELS = 256
LARGEST_WEIGHT = WEIGHT_LEVELS // 2
# The largest of which two, each times 255, are less than 2 ** 15.
LARGEST_WEIGHT_IN_SUMS_OF_16_BITS = 64


def float_model(structure: Structure, layers: Layers, mean: Triple, std: Triple) -> openvino.Model:
    """Write a network down in float32, for what computes in any float precision. Any batch size will do.

    `layers` are those of model/folded.py, whose weights the model goes on using where they lie.
    """
    return _Writer(structure, layers, mean, std).model()


def quantised_model(
    structure: Structure, layers: Layers, mean: Triple, std: Triple, *, images: NDArray[np.uint8], threads: int
) -> openvino.Model:
    """Write a network down with eight-bit convolutions and head.

    The ranges of the activations are those that `images`, uint8 (K, 3, S, S), show in the float32 network.
    """
    ranges = _measure_ranges(_Writer(structure, layers, mean, std), images, threads)
    return _Writer(structure, layers, mean, std, ranges, largest_weight=largest_weight()).model()


@cache
def largest_weight() -> int:
    """Return up to which integer weights may go: convolve the largest weights with the largest activations, and see."""
    channels, side = 64, 8
    x = ops.parameter([1, channels, side, side], np.float32)
    rounded = ops.fake_quantize(x, *_limits(0, 1), *_limits(0, 1), ACTIVATION_LEVELS)
    weight = ops.fake_quantize(
        np.ones((channels, channels, 3, 3), np.float32), *_limits(-1, 1), *_limits(-1, 1), WEIGHT_LEVELS
    )
    products = ops.convolution(rounded, weight, [1, 1], [0, 0], [0, 0], [1, 1])
    run = core().compile_model(openvino.Model([products], [x], "saturation"), "CPU", {"INFERENCE_NUM_THREADS": 1})
    found = run([np.ones((1, channels, side, side), np.float32)])[0]
    is_exact = np.allclose(found, channels * 3 * 3, rtol=0.01)
    return LARGEST_WEIGHT if is_exact else LARGEST_WEIGHT_IN_SUMS_OF_16_BITS


def _measure_ranges(writer: _Writer, images: NDArray[np.uint8], threads: int) -> Ranges:
    """Return the least and the greatest value of each point where a quantised network rounds."""
    writer.model()
    points = writer.points
    probe = openvino.Model([ops.result(point) for point in points.values()], [writer.images], "ranges")
    request = core().compile_model(probe, "CPU", {"INFERENCE_NUM_THREADS": threads}).create_infer_request()
    ranges = dict.fromkeys(points, (0.0, 0.0))  # zero, the padding, must be exact: it lies in every range
    for image in images:
        values = request.infer([image[None]])
        for position, name in enumerate(points):
            low, high = ranges[name]
            ranges[name] = (min(low, float(values[position].min())), max(high, float(values[position].max())))
    return ranges


class _Writer:
    """Turns layers into operations. Without `ranges` it notes in `points` where they would be needed."""

    def __init__(
        self,
        structure: Structure,
        layers: Layers,
        mean: Triple,
        std: Triple,
        ranges: Ranges | None = None,
        *,
        largest_weight: int = LARGEST_WEIGHT,
    ) -> None:
        self.structure = structure
        self.layers = layers
        self.mean = mean
        self.std = std
        self.ranges = ranges
        self.largest_weight = largest_weight
        self.points: dict[str, Node] = {}
        self.images = ops.parameter([-1, 3, -1, -1], np.uint8, name="images")

    def model(self) -> openvino.Model:
        """Return the whole network."""
        scale = np.array(self.std, np.float32).reshape(1, 3, 1, 1) * 255
        shift = -np.array(self.mean, np.float32).reshape(1, 3, 1, 1) * 255
        x = ops.divide(ops.add(ops.convert(self.images, "f32"), shift), scale)
        x = ops.relu(self._convolution(self.structure.stem, self._round("images", x)))
        if self.structure.pool:
            x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
        for stage in self.structure.stages:
            for block in stage:
                x = self._block(block, x)
        pooled = self._round("pooled", ops.reduce_mean(x, np.array([2, 3])))
        weight, bias = self.layers["head"]
        logits = ops.add(ops.matmul(pooled, self._round_weight(weight), False, True), bias)
        return openvino.Model([logits], [self.images], "resnet")

    def _block(self, block: Block, x: Node) -> Node:
        x = y = self._round(f"{block.name}.in", x)
        for i, layer in enumerate(block.layers):
            y = self._convolution(layer, self._round(f"{block.name}.{i}", ops.relu(y)) if i else y)
        if block.shortcut != "none":
            # The sum's first term is rounded too: only then are convolution, sum and ReLU one pass over memory.
            y = self._round(f"{block.name}.sum", y)
            y = ops.add(y, self._convolution(block.projection, x) if block.projection else x)
        return ops.relu(y)

    def _convolution(self, layer: Convolution, x: Node) -> Node:
        weight, bias = self.layers[layer.name]
        windows = [[layer.stride] * 2, *2 * [[layer.padding] * 2], [1, 1]]
        if layer.groups > 1:
            grouped = weight.reshape(layer.groups, -1, *weight.shape[1:])
            y = ops.group_convolution(x, self._round_weight(grouped, channel_axes=2), *windows)
        else:
            y = ops.convolution(x, self._round_weight(weight), *windows)
        return ops.add(y, bias.reshape(1, -1, 1, 1))

    def _round(self, name: str, x: Node) -> Node:
        """Round activations to 256 steps over the range of this point, one of which is zero."""
        if self.ranges is None:
            self.points[name] = x
            return x
        low, high = self.ranges[name]
        step = max(high - low, 1e-6) / (ACTIVATION_LEVELS - 1)
        low = -round(-low / step) * step
        limits = _limits(low, low + step * (ACTIVATION_LEVELS - 1))
        return ops.fake_quantize(x, *limits, *limits, ACTIVATION_LEVELS)

    def _round_weight(self, weight: NDArray[np.float32], channel_axes: int = 1) -> Node:
        """Round weights symmetrically, each output channel over its own range, to integers up to `largest_weight`."""
        constant = ops.constant(weight, shared_memory=True)
        if self.ranges is None:
            return constant
        inner = tuple(range(channel_axes, weight.ndim))
        high = np.maximum(np.abs(weight).max(axis=inner, keepdims=True), 1e-6) * (LARGEST_WEIGHT / self.largest_weight)
        return ops.fake_quantize(constant, -high, high, -high, high, WEIGHT_LEVELS)


def _limits(low: float, high: float) -> tuple[np.float32, np.float32]:
    return np.float32(low), np.float32(high)
