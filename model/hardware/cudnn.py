"""cuDNN's switches in torch, which are the whole process'."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cudnn_switched(name: str, wanted: bool) -> Iterator[None]:
    """Set a switch of torch.backends.cudnn for a while. torch's own `flags` would set all the others, too."""
    before = getattr(torch.backends.cudnn, name)
    setattr(torch.backends.cudnn, name, wanted)
    try:
        yield
    finally:
        setattr(torch.backends.cudnn, name, before)
