"""What happens to an image before the network: one evaluation transform, and the training augmentation.

Images travel as uint8 (3, S, S), RGB, until they are on the device; `normalise` makes floats of them there.
`evaluation_transform` is used by the evaluation of training and by the service alike and holds no randomness.
`augment` is for training batches only and works on whole batches on whatever device they are on.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from model.recipe import Augmentation
from model.sent import as_sent, draw_as_sent

# The true per-channel figures of CIFAR-10's 50,000 training images, as fractions of 255. The often-seen std
# (0.2023, 0.1994, 0.2010) is the mean of the per-image stds. A checkpoint carries the ones it was trained with.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)


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
    scale = (1 / (255 * std)).view(1, 3, 1, 1)
    offset = (mean / std).view(1, 3, 1, 1)
    return images.to(torch.float32) * scale - offset


def augment(images: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Return a randomly changed copy of a training batch, uint8 (N, 3, S, S) to uint8 (N, 3, S, S).

    Each image is shifted by up to `crop_padding` pixels either way (reflecting at the border) and flipped left to right
    with probability 1/2. With the probabilities of the same names, it loses its colours (`greyscale`), is blurred by
    scaling (`rescale`), and is saved as JPEG at a quality from 40 to 95 (`jpeg`). Then it has a `cutout`-pixel square
    blacked out (DeVries and Taylor 2017, arXiv:1708.04552).
    Random numbers come from `generator`, a CPU one, so that every device sees the same ones; what is off draws none.
    """
    count, _, size, _ = images.shape
    device = images.device
    padding = augmentation.crop_padding

    def integers(high: int) -> Tensor:
        return torch.randint(0, high, (count, 1), generator=generator).to(device)

    index = torch.arange(size, device=device)
    columns = index.expand(count, size)
    if augmentation.flip:
        columns = torch.where(integers(2) == 1, columns.flip(1), columns)
    rows = index.expand(count, size)
    if padding:
        images = functional.pad(images.float(), (padding,) * 4, mode="reflect").to(torch.uint8)
        rows = rows + integers(2 * padding + 1)
        columns = columns + integers(2 * padding + 1)
    batch = torch.arange(count, device=device)
    changed = images.permute(0, 2, 3, 1)[batch[:, None, None], rows[:, :, None], columns[:, None, :]]
    changed = changed.permute(0, 3, 1, 2)
    # After the crop: at serving, too, JPEG's blocks begin at the corner of the picture.
    if augmentation.greyscale or augmentation.rescale or augmentation.jpeg:
        choices = draw_as_sent(count, augmentation, generator)
        changed = as_sent(changed, *(choice.to(device) for choice in choices))
    if augmentation.cutout:
        offset_y = index - integers(size) + augmentation.cutout // 2
        offset_x = index - integers(size) + augmentation.cutout // 2
        kept_y = (offset_y < 0) | (offset_y >= augmentation.cutout)
        kept_x = (offset_x < 0) | (offset_x >= augmentation.cutout)
        changed = changed * (kept_y[:, None, :, None] | kept_x[:, None, None, :])
    return changed


def resize_batch(images: Tensor, size: int) -> Tensor:
    """Resize float (N, 3, S, S) to (N, 3, size, size) with antialiasing; for progressive training sizes."""
    if images.shape[-1] == size:
        return images
    return functional.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
