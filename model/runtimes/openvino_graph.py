"""A network as an OpenVINO model, in floats or quantised to eight-bit integers.

    uint8 (N, 3, S, S) -> normalise -> stem -> stages -> mean over space -> head -> float32 logits (N, classes)

The model is written down operation by operation rather than traced out of PyTorch: it takes a tenth of a second in
place of two, and the points where a quantised network rounds are chosen here. To make it and to run it takes OpenVINO
and NumPy, no torch, no compiler and no file.

Quantisation is the post-training kind (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", arXiv:1712.05877): weights symmetric with one scale an output channel, activations
with one scale a tensor, whose range is what a few images show. OpenVINO merges the rounding into the convolutions
between, which then compute in integers. Rounded weights shift what a channel sums up to on average; its bias takes
that back ("bias correction": Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
Correction", arXiv:1906.04721, here with averages that the same few images show).

Where a processor adds products of such integers in sixteen bits (x86 without VNNI), two large ones are more than fits,
and the sum is silently cut off. Weights of seven bits are the usual way around it (OpenVINO's "Saturation (overflow)
Issue Workaround"); whether this processor needs them is found out on itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import Node
from openvino import opset13 as ops

from model.architecture import BlockSpec, ConvSpec, NetworkSpec
from model.runtimes.folded_layers import FoldedLayer
from model.runtimes.openvino_core import core
from model.transforms import Triple

Layers = Mapping[str, FoldedLayer]
Array = NDArray[np.float32]
Ranges = dict[str, tuple[float, float]]

WEIGHT_LEVELS = 255  # -127 to 127: symmetric
ACTIVATION_LEVELS = 256
MAX_WEIGHT = WEIGHT_LEVELS // 2
# The largest of which two, each times 255, are less than 2 ** 15.
MAX_WEIGHT_IN_SUMS_OF_16_BITS = 64


class Observed(NamedTuple):
    """What a few images show in the float32 network.

    `ranges` are the least and the greatest value of each point where a quantised network rounds, `inputs` what each
    layer is given, the mean over the images: (C, H, W), and (C,) for the head.
    """

    ranges: Ranges
    inputs: dict[str, Array]


def openvino_model(spec: NetworkSpec, layers: Layers, mean: Triple, std: Triple) -> openvino.Model:
    """Write a network down in float32, for what computes in any float precision. Any batch size will do.

    `layers` are those of folded_layers.py, whose weights the model goes on using where they lie.
    """
    return _Writer(spec, layers, mean, std).model()


def quantised_model(
    spec: NetworkSpec, layers: Layers, mean: Triple, std: Triple, *, images: NDArray[np.uint8], threads: int
) -> openvino.Model:
    """Write a network down with eight-bit convolutions and head.

    The ranges of the activations and the corrected biases come of what `images`, uint8 (K, 3, S, S), show in the
    float32 network.
    """
    observed = _observe(_Probe(spec, layers, mean, std), images, threads)
    largest = largest_weight()
    inputs = observed.inputs | {
        convolution.name: _mean_windows(observed.inputs[convolution.name], convolution)
        for convolution in spec.convolutions
    }
    corrected = {
        name: FoldedLayer(layer.weight, layer.bias - _mean_rounding_error(layer.weight, inputs[name], largest))
        for name, layer in layers.items()
    }
    return _Quantised(spec, corrected, mean, std, ranges=observed.ranges, largest_weight=largest).model()


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
    return MAX_WEIGHT if is_exact else MAX_WEIGHT_IN_SUMS_OF_16_BITS


def _observe(probe: _Probe, images: NDArray[np.uint8], threads: int) -> Observed:
    """Run a network in float32 and look at what passes through it."""
    probe.model()
    watched = [*probe.points.values(), *probe.inputs.values()]
    model = openvino.Model([ops.result(node) for node in watched], [probe.images], "observed")
    request = core().compile_model(model, "CPU", {"INFERENCE_NUM_THREADS": threads}).create_infer_request()
    ranges = dict.fromkeys(probe.points, (0.0, 0.0))  # zero, the padding, must be exact: it lies in every range
    inputs: dict[str, Array] = {}
    for image in images:
        values = [value[0] for value in request.infer([image[None]]).values()]
        for (name, (low, high)), value in zip(ranges.items(), values, strict=False):
            ranges[name] = (min(low, float(value.min())), max(high, float(value.max())))
        for name, value in zip(probe.inputs, values[len(ranges) :], strict=True):
            inputs[name] = inputs.get(name, np.float32(0)) + value / np.float32(len(images))
    return Observed(ranges, inputs)


def _mean_windows(inputs: Array, layer: ConvSpec) -> Array:
    """Return the mean of all windows that a convolution sees: (C, H, W) to (C, kernel, kernel)."""
    padding = [layer.padding] * 2
    padded = np.pad(inputs, [(0, 0), padding, padding])
    windows = np.lib.stride_tricks.sliding_window_view(padded, (layer.kernel, layer.kernel), axis=(1, 2))
    means: Array = windows[:, :: layer.stride, :: layer.stride].mean(axis=(1, 2))
    return means


def _mean_rounding_error(weight: Array, inputs: Array, largest: int) -> Array:
    """Return by how much rounding the weight (out, in, ...) shifts each output (out,) on average.

    The mean of the `inputs` is (in, ...), in all groups of them if the weight is that of a grouped convolution.
    """
    groups = len(inputs) // weight.shape[1]
    step = _max_per_channel(weight) / np.float32(largest)
    error = np.round(weight / step) * step - weight
    return (error.reshape(groups, len(weight) // groups, -1) @ inputs.reshape(groups, -1, 1)).reshape(-1)


def _max_per_channel(weight: Array) -> Array:
    """Return the largest magnitude of each output channel, (out, in, ...) to (out, 1, ...)."""
    largest: Array = np.abs(weight).max(axis=tuple(range(1, weight.ndim)), keepdims=True)
    return np.maximum(largest, np.float32(1e-6))


class _Writer:
    """Turns layers into operations, in floats."""

    def __init__(self, spec: NetworkSpec, layers: Layers, mean: Triple, std: Triple) -> None:
        self.spec = spec
        self.layers = layers
        self.mean = mean
        self.std = std
        self.images = ops.parameter([-1, 3, -1, -1], np.uint8, name="images")

    def model(self) -> openvino.Model:
        """Return the whole network."""
        scale = np.array(self.std, np.float32).reshape(1, 3, 1, 1) * 255
        shift = -np.array(self.mean, np.float32).reshape(1, 3, 1, 1) * 255
        x = ops.divide(ops.add(ops.convert(self.images, "f32"), shift), scale)
        x = ops.relu(self._convolution(self.spec.stem, self._quantise_activations("images", x)))
        if self.spec.pool:
            x = ops.max_pool(x, [2, 2], [1, 1], [1, 1], [1, 1], [3, 3]).output(0)
        for stage in self.spec.stages:
            for block in stage:
                x = self._block(block, x)
        logits = self._head(self._quantise_activations("pooled", ops.reduce_mean(x, np.array([2, 3]))))
        return openvino.Model([logits], [self.images], "resnet")

    def _block(self, block: BlockSpec, x: Node) -> Node:
        x = y = self._quantise_activations(f"{block.name}.in", x)
        for i, layer in enumerate(block.layers):
            y = self._convolution(layer, self._quantise_activations(f"{block.name}.{i}", ops.relu(y)) if i else y)
        if block.shortcut != "none":
            # The sum's first term is rounded too: only then are convolution, sum and ReLU one pass over memory.
            y = self._quantise_activations(f"{block.name}.sum", y)
            y = ops.add(y, self._convolution(block.projection, x) if block.projection else x)
        return ops.relu(y)

    def _convolution(self, layer: ConvSpec, x: Node) -> Node:
        weight, bias = self.layers[layer.name]
        windows = [[layer.stride] * 2, *2 * [[layer.padding] * 2], [1, 1]]
        if layer.groups > 1:
            grouped = (layer.groups, layer.out_channels // layer.groups, *weight.shape[1:])
            y = ops.group_convolution(x, self._quantise_weight(weight, grouped), *windows)
        else:
            y = ops.convolution(x, self._quantise_weight(weight, weight.shape), *windows)
        return ops.add(y, bias.reshape(1, -1, 1, 1))

    def _head(self, pooled: Node) -> Node:
        weight, bias = self.layers["head"]
        return ops.add(ops.matmul(pooled, self._quantise_weight(weight, weight.shape), False, True), bias)

    def _quantise_activations(self, name: str, x: Node) -> Node:
        """Return the activations at a point where a quantised network rounds: here as they are."""
        return x

    def _quantise_weight(self, weight: Array, shape: tuple[int, ...]) -> Node:
        return ops.constant(weight.reshape(shape), shared_memory=True)


class _Probe(_Writer):
    """Notes the points where a quantised network rounds, and what each layer is given."""

    def __init__(self, spec: NetworkSpec, layers: Layers, mean: Triple, std: Triple) -> None:
        super().__init__(spec, layers, mean, std)
        self.points: dict[str, Node] = {}
        self.inputs: dict[str, Node] = {}

    def _convolution(self, layer: ConvSpec, x: Node) -> Node:
        self.inputs[layer.name] = x
        return super()._convolution(layer, x)

    def _head(self, pooled: Node) -> Node:
        self.inputs["head"] = pooled
        return super()._head(pooled)

    def _quantise_activations(self, name: str, x: Node) -> Node:
        self.points[name] = x
        return x


class _Quantised(_Writer):
    """Rounds to integers of eight bits, as few images have been observed to need it."""

    def __init__(
        self, spec: NetworkSpec, layers: Layers, mean: Triple, std: Triple, *, ranges: Ranges, largest_weight: int
    ) -> None:
        super().__init__(spec, layers, mean, std)
        self.ranges = ranges
        self.largest_weight = largest_weight

    def _quantise_activations(self, name: str, x: Node) -> Node:
        """Round activations to 256 steps over the range of this point, one of which is zero."""
        low, high = self.ranges[name]
        step = max(high - low, 1e-6) / (ACTIVATION_LEVELS - 1)
        low = -round(-low / step) * step
        limits = _limits(low, low + step * (ACTIVATION_LEVELS - 1))
        return ops.fake_quantize(x, *limits, *limits, ACTIVATION_LEVELS)

    def _quantise_weight(self, weight: Array, shape: tuple[int, ...]) -> Node:
        """Round weights symmetrically, each output channel over its own range, to integers up to `largest_weight`."""
        high = _max_per_channel(weight) * np.float32(MAX_WEIGHT / self.largest_weight)
        high = high.reshape(*shape[: len(shape) - weight.ndim + 1], *high.shape[1:])
        return ops.fake_quantize(super()._quantise_weight(weight, shape), -high, high, -high, high, WEIGHT_LEVELS)


def _limits(low: float, high: float) -> tuple[np.float32, np.float32]:
    return np.float32(low), np.float32(high)
