"""Batch norm folded into the convolution before it, in NumPy; model/fuse.py does the same to torch's modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.architecture import Convolution, Structure

Array = NDArray[np.float32]

EPSILON = 1e-5  # of torch.nn.BatchNorm2d, which we train with


class Layer(NamedTuple):
    """What a convolution or the head computes with: weight (out, in, ...) and bias (out,), float32."""

    weight: Array
    bias: Array


def fold(
    structure: Structure, tensors: Mapping[str, Array], keep: Callable[[Array], Array] = np.ascontiguousarray
) -> dict[str, Layer]:
    """Return each layer by the name of its convolution, and "head"; `keep` says where a weight shall lie from then on.

    conv(x) * g + b is one convolution whose weights are scaled by g.
    """
    layers = {one.name: _folded(one, tensors, keep) for one in structure.convolutions}
    return layers | {"head": Layer(keep(tensors["head.weight"]), tensors["head.bias"])}


def _folded(one: Convolution, tensors: Mapping[str, Array], keep: Callable[[Array], Array]) -> Layer:
    gain, shift, mean, variance = (
        tensors[f"{one.norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + np.float32(EPSILON))
    weight = tensors[f"{one.name}.weight"] * scale.reshape(-1, 1, 1, 1)
    return Layer(keep(weight), shift - mean * scale)
