"""Whether a GPU has room for the training images, all of which lie in its memory while it trains."""

from __future__ import annotations

import torch

from model.hardware.available_memory import bytes_in_words
from model.training.errors import TrainingError
from model.transforms import MIN_SIDE

DEVICE_MEMORY_SHARE = 0.8  # of what is free; the network, its gradients and its batches need some, too


def check_device_memory(count: int, size: int, device: torch.device) -> None:
    """Raise TrainingError if so many images of size x size pixels are more than fits on a GPU."""
    if device.type != "cuda" or not count:
        return
    needed, free = count * 3 * size**2, torch.cuda.mem_get_info(device)[0]
    if needed <= DEVICE_MEMORY_SHARE * free:
        return
    fitting = int((DEVICE_MEMORY_SHARE * free / count / 3) ** 0.5)
    smaller = f"--image-size {fitting}, " if fitting >= MIN_SIDE else ""
    raise TrainingError(
        f"{count} training pictures of {size}x{size} take {bytes_in_words(needed)} of the GPU's memory, which holds "
        f"them all, and of the {bytes_in_words(free)} that are free on {device} {DEVICE_MEMORY_SHARE:.0%} may be "
        f"taken: take {smaller}fewer pictures or --device cpu"
    )
