"""Training images as people would send them: some grey, some scaled by another program, some saved as JPEG.

The choices are drawn on the CPU, one an image, and carried out on whole batches on whatever device they are on.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model.training.jpeg import luma, recompress
from model.training.recipe import Augmentation

# JPEG qualities that training draws from: most programs save at 75 or more, some at less.
MIN_QUALITY, MAX_QUALITY = 40, 95

ENLARGEMENT = 4


def draw_corruptions(
    count: int, augmentation: Augmentation, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw for `count` images, on the CPU: which lose their colours, which are rescaled (bool), and the JPEG quality.

    The quality, int64, is 0 for images that are not saved as JPEG.
    """
    grey = torch.rand(count, generator=generator) < augmentation.greyscale
    rescaled = torch.rand(count, generator=generator) < augmentation.rescale
    saved = torch.rand(count, generator=generator) < augmentation.jpeg
    return grey, rescaled, torch.randint(MIN_QUALITY, MAX_QUALITY + 1, (count,), generator=generator) * saved


def apply_corruptions(images: Tensor, grey: Tensor, rescaled: Tensor, quality: Tensor) -> Tensor:
    """Return uint8 (N, 3, S, S) with the choices of `draw_corruptions`, on the images' device, carried out."""
    # Every image goes through all three, chosen or not: so a GPU need not wait to know which, and a CPU core does
    # thousands of images a second anyway.
    images = torch.where(grey.view(-1, 1, 1, 1), greyscale(images), images)
    images = torch.where(rescaled.view(-1, 1, 1, 1), rescale(images), images)
    return torch.where(quality.view(-1, 1, 1, 1) > 0, recompress(images, quality.clamp_min(1)), images)


def greyscale(images: Tensor) -> Tensor:
    """Return a batch without its colours: uint8 (N, 3, H, W), RGB, to the same, all channels the luma."""
    return luma(images).round().to(torch.uint8).expand_as(images)


def rescale(images: Tensor) -> Tensor:
    """Return uint8 (N, 3, S, S) enlarged four times (bicubic) and brought back (bilinear, antialiased): a mild blur.

    It depends little on the factor: the filter on the way back is two pixels of the small picture wide in any case.
    """
    size = images.shape[-1]
    # Both ways are linear, and rows and columns are scaled apart, so one matrix (S, S) says it all.
    identity = torch.eye(size, device=images.device).view(1, 1, size, size)
    enlarged = functional.interpolate(identity, size=(ENLARGEMENT * size, size), mode="bicubic", antialias=True)
    matrix = functional.interpolate(enlarged, size=(size, size), mode="bilinear", antialias=True)[0, 0]
    return (matrix @ images.float() @ matrix.T).round().clamp(0, 255).to(torch.uint8)
