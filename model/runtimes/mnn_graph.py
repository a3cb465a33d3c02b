"""A network as a model of MNN's, in float32.

    float32 (N, 3, S, S), normalised -> stem -> stages -> mean over space -> head -> float32 logits (N, classes, 1, 1)

The weights lie in a file of their own: MNN keeps the model in memory besides what it computes with.

MNN's own converter starts from a file of ONNX, and takes torch, the onnx package and seconds. A model of MNN's is a
FlatBuffer, in which a field is known by its place, and places only ever come to be added: the numbers below are those
of the schema (schema/default/MNN.fbs and CaffeOp.fbs in github.com/alibaba/MNN). The few operations of a ResNet are
written down with it, each ReLU inside the operation before it, as the converter puts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import BinaryIO, Literal, NamedTuple

import flatbuffers
import numpy as np

from model.architecture import BlockSpec, ConvSpec, NetworkSpec
from model.runtimes.folded_layers import FoldedLayer

# OpType: what an operation does.
ADD, CONVOLVE, INPUT, POOL, REORDER = 7, 12, 34, 47, 129
# OpParameter: which kind of table describes it.
TABLES = {ADD: 6, CONVOLVE: 9, INPUT: 21, POOL: 31, REORDER: 66}
# MNN_DATA_FORMAT: as NumPy has images; and channels in groups, as MNN computes.
NCHW, NC4HW4 = 0, 2
FLOAT32 = 1  # DataType
FROM_ONNX = 3  # NetSource: whose meaning the operations have
RELU = 1  # FusedActivation
MEAN = 1  # PoolType; the other one is the maximum, 0


class _Field(NamedTuple):
    """A field of a table; an offset says where something lies that has been written already."""

    place: int
    value: int
    kind: Literal["integer", "byte", "offset"] = "integer"


def mnn_model(spec: NetworkSpec, layers: Mapping[str, FoldedLayer], side: int, weights: BinaryIO) -> bytearray:
    """Write a network down, and its weights to the end of a file.

    `layers` are those of folded_layers.py, `side` the images' height and width.
    """
    writer = _Writer(layers, weights)
    x = writer.images(side)
    x = writer.convolution(spec.stem, x, relu=True)
    if spec.pool:
        x = writer.maximum(x)
    for stage in spec.stages:
        for block in stage:
            x = _block(writer, block, x)
    head = ConvSpec("head", "", spec.features, spec.num_classes, 1)
    return writer.finish(writer.convolution(head, writer.mean(x), relu=False))


def _block(writer: _Writer, block: BlockSpec, x: int) -> int:
    y = x
    *inner, last = block.layers
    for layer in inner:
        y = writer.convolution(layer, y, relu=True)
    y = writer.convolution(last, y, relu=block.shortcut == "none")
    if block.shortcut == "none":
        return y
    return writer.sum(y, writer.convolution(block.projection, x, relu=False) if block.projection else x)


class _Writer:
    """Writes one operation after the other; each returns the number of the tensor that it makes."""

    def __init__(self, layers: Mapping[str, FoldedLayer], weights: BinaryIO) -> None:
        self._to = flatbuffers.Builder(65536)
        self._layers = layers
        self._weights = weights
        self._operations: list[int] = []

    def images(self, side: int) -> int:
        """Take float32 (N, 3, side, side), and put it into MNN's order."""
        shape = self._to.CreateNumpyVector(np.array([1, 3, side, side], np.int32))
        x = self._operation(INPUT, [], [_Field(0, shape, "offset"), _Field(1, FLOAT32), _Field(2, NCHW, "byte")])
        return self._operation(REORDER, [x], [_Field(0, NCHW, "byte"), _Field(1, NC4HW4, "byte")])

    def convolution(self, layer: ConvSpec, x: int, *, relu: bool) -> int:
        """Convolve and add the bias; `relu` says whether what is negative becomes zero."""
        place = self._keep(self._layers[layer.name])
        pairs = (layer.padding, layer.kernel, layer.stride, 1)  # the last one is the dilation
        sizes = [size for pair in pairs for size in (pair, pair)]
        common = [_Field(number, size) for number, size in enumerate(sizes)]
        common += [_Field(9, layer.groups), _Field(10, layer.out_channels), _Field(11, layer.in_channels)]
        table = self._table([*common, _Field(12, int(relu), "byte")])
        return self._operation(CONVOLVE, [x], [_Field(0, table, "offset"), _Field(6, place, "offset")])

    def _keep(self, layer: FoldedLayer) -> int:
        """Put weight and bias into their file, and write down where they begin and how many bytes each has."""
        sizes = [self._weights.tell(), layer.weight.nbytes, layer.bias.nbytes]
        for array in layer:
            self._weights.write(np.ascontiguousarray(array).data)
        return int(self._to.CreateNumpyVector(np.array(sizes, np.int64)))

    def sum(self, x: int, y: int) -> int:
        """Add two tensors; what is negative becomes zero."""
        return self._operation(ADD, [x, y], [_Field(1, FLOAT32), _Field(2, RELU)])

    def maximum(self, x: int) -> int:
        """Take the maximum of 3x3 windows with a padding of 1 and a stride of 2; sizes are rounded down."""
        sizes = {0: 1, 1: 1, 3: 3, 4: 3, 5: 2, 6: 2}
        windows = [_Field(place, size) for place, size in sizes.items()]
        return self._operation(POOL, [x], [*windows, _Field(9, FLOAT32), _Field(10, 0, "byte")])

    def mean(self, x: int) -> int:
        """Take the mean over space."""
        return self._operation(POOL, [x], [_Field(2, 1, "byte"), _Field(7, MEAN, "byte"), _Field(9, FLOAT32)])

    def finish(self, x: int) -> bytearray:
        """Return the model that ends with tensor `x`, the last one."""
        names = [self._to.CreateString(f"{tensor}") for tensor in range(x + 1)]
        offsets = {3: self._offsets(self._operations), 4: self._offsets(names[x:]), 7: self._offsets(names)}
        fields = [_Field(place, offset, "offset") for place, offset in offsets.items()]
        self._to.Finish(self._table([*fields, _Field(6, FROM_ONNX, "byte"), _Field(8, len(names))]))
        written: bytearray = self._to.Output()
        return written

    def _operation(self, what: int, inputs: list[int], described: list[_Field]) -> int:
        made = len(self._operations)
        ends = {0: inputs, 4: [made]}
        vectors = {
            place: self._to.CreateNumpyVector(np.array(tensors, np.int32)) for place, tensors in ends.items() if tensors
        }
        offsets = vectors | {2: self._table(described), 3: self._to.CreateString(f"{made}")}
        fields = [_Field(place, offset, "offset") for place, offset in offsets.items()]
        fields += [_Field(1, TABLES[what], "byte"), _Field(5, what), _Field(6, NCHW, "byte")]
        self._operations.append(self._table(fields))
        return made

    def _table(self, fields: Iterable[_Field]) -> int:
        fields = list(fields)
        self._to.StartObject(1 + max(field.place for field in fields))
        prepend = {
            "integer": self._to.PrependInt32Slot,
            "byte": self._to.PrependInt8Slot,
            "offset": self._to.PrependUOffsetTRelativeSlot,
        }
        for place, value, kind in fields:
            prepend[kind](place, value, None)  # None: no default, so that a zero is written too
        offset: int = self._to.EndObject()
        return offset

    def _offsets(self, of_each: list[int]) -> int:
        self._to.StartVector(4, len(of_each), 4)
        for offset in reversed(of_each):  # a FlatBuffer is written from its end
            self._to.PrependUOffsetTRelative(offset)
        vector: int = self._to.EndVector()
        return vector
