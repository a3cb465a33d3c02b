"""What happens to an image before the network, in training, evaluation and service alike.

Images travel as uint8 (3, S, S), RGB, until they are on the device; `normalise` makes floats of them there.
Nothing here is random; the training augmentation is in `augment.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:  # who only decodes pictures needs no torch, which takes two seconds and hundreds of MB
    from torch import Tensor

Triple = tuple[float, float, float]  # one number for each of red, green and blue

# The true per-channel figures of CIFAR-10's 50,000 training images, as fractions of 255. The often-seen std
# (0.2023, 0.1994, 0.2010) is the mean of the per-image stds. A checkpoint carries the ones it was trained with.
CIFAR10_MEAN: Triple = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Triple = (0.2470, 0.2435, 0.2616)

# Of an image's side, in pixels: beyond them a number can only be a slip, and memory goes by the side's square. A
# network that was trained elsewhere may see larger images than one that is trained here: it is served, and scored.
MIN_SIDE, MAX_SIDE, MAX_INPUT_SIDE = 8, 512, 1024


def evaluation_transform(image: Image.Image, size: int) -> NDArray[np.uint8]:
    """Turn an RGB picture into the network's input, uint8 (3, size, size).

    The shorter side is resized to `size` with an antialiasing bilinear filter, then the centre is cropped.
    A picture of size x size passes through untouched.
    """
    width, height = image.size
    if (width, height) != (size, size):
        scale = size / min(width, height)
        scaled = (max(size, round(width * scale)), max(size, round(height * scale)))
        left, top = round((scaled[0] - size) / 2), round((scaled[1] - size) / 2)
        # Resizing only the box that survives the crop: the same pixels, without the ones that would be thrown away.
        fx, fy = width / scaled[0], height / scaled[1]
        box = (left * fx, top * fy, (left + size) * fx, (top + size) * fy)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(image, dtype=np.uint8).transpose(2, 0, 1))


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Map uint8 (N, 3, S, S) to float32 (N, 3, S, S): (x / 255 - mean) / std per channel.

    `mean` and `std` are float32 (3,) on the images' device.
    """
    return scale_and_shift(images, *scale_and_offset(mean, std))


def scale_and_offset(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `scale_and_shift` takes, each float32 (1, 3, 1, 1), of float32 (3,) on the same device."""
    return (1 / (255 * std)).view(1, 3, 1, 1), (mean / std).view(1, 3, 1, 1)


def scale_and_shift(images: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """Normalise uint8 (N, 3, S, S) to float32: for who does so again and again, and has the two numbers ready."""
    return images.float() * scale - offset


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize float (N, 3, S, S) to (N, 3, size, size) with antialiasing; for progressive training sizes."""
    if images.shape[-1] == size:
        return images
    from torch.nn import functional

    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
