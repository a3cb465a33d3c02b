"""Tensors as a safetensors file holds them: bytes, a type and a shape. Nothing here needs torch until one is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import safetensors
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

# By the names of the format.
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
KNOWN = {**FLOATS, "U8": "uint8"}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of a file; `dtype` is torch's name of its type, or the format's if we store no such tensors."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | bytearray

    @classmethod
    def of(cls, tensor: Tensor) -> StoredTensor:
        """Return what would be stored."""
        import torch

        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), data)

    @property
    def is_float(self) -> bool:
        """Whether its type is one that weights are stored in."""
        return self.dtype in FLOATS.values()

    def array(self) -> NDArray[Any]:
        """Return floats as float32, uint8 as it is. Raises ValueError for another type."""
        if self.dtype == "bfloat16":  # NumPy has no such type: the upper half of a float32
            values = (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "uint8":
            values = np.frombuffer(self.data, np.uint8)
        elif self.is_float:
            values = np.frombuffer(self.data, np.dtype(self.dtype).newbyteorder("<")).astype(np.float32, copy=False)
        else:
            raise ValueError(f"weights are not stored as {self.dtype}")
        return values.reshape(self.shape)

    def tensor(self) -> Tensor:
        """Return a torch tensor of the type that is stored."""
        import torch

        return torch.frombuffer(bytearray(self.data), dtype=getattr(torch, self.dtype)).reshape(self.shape)


def parse(data: bytes) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file, by name. Raises safetensors.SafetensorError."""
    return {
        name: StoredTensor(KNOWN.get(entry["dtype"], entry["dtype"]), tuple(entry["shape"]), entry["data"])
        for name, entry in safetensors.deserialize(data)  # type: ignore[no-untyped-call]
    }
