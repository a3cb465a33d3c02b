"""Batch norm folded into the convolution before it, in NumPy; model/runtimes/batch_norm_folding.py has torch's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.architecture import ConvSpec, NetworkSpec

Array = NDArray[np.float32]

EPSILON = 1e-5  # of torch.nn.BatchNorm2d, which we train with


class FoldedLayer(NamedTuple):
    """What a convolution or the head computes with: weight (out, in, ...) and bias (out,), float32."""

    weight: Array
    bias: Array


def fold(
    spec: NetworkSpec, tensors: Mapping[str, Array], keep: Callable[[Array], Array] = np.ascontiguousarray
) -> dict[str, FoldedLayer]:
    """Return each layer by the name of its convolution, and "head"; `keep` says where a weight shall lie from then on.

    conv(x) * g + b is one convolution whose weights are scaled by g.
    """
    layers = {convolution.name: _folded(convolution, tensors, keep) for convolution in spec.convolutions}
    return layers | {"head": FoldedLayer(keep(tensors["head.weight"]), tensors["head.bias"])}


def _folded(convolution: ConvSpec, tensors: Mapping[str, Array], keep: Callable[[Array], Array]) -> FoldedLayer:
    gain, shift, mean, variance = (
        tensors[f"{convolution.norm}.{name}"] for name in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gain / np.sqrt(variance + np.float32(EPSILON))
    weight = tensors[f"{convolution.name}.weight"] * scale.reshape(-1, 1, 1, 1)
    return FoldedLayer(keep(weight), shift - mean * scale)
