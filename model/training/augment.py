"""Training augmentation: an epoch's random choices are drawn at once, then applied batch by batch on the device.

Drawing first has three uses: a step on a GPU waits for no random numbers from the CPU, a run resumed in the middle of
an epoch sees what an undisturbed one would have seen, and several processes that share a batch change each image as
one process would have done.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from model.training.corruptions import apply_corruptions, draw_corruptions
from model.training.recipe import Augmentation


@dataclass(frozen=True)
class AugmentationDraws:
    """The choices for N training images, each a tensor (N,) indexed by image; int64, or bool where it is a yes or no.

    Shifts, corners and sides are in pixels. `partner` is the image that a CutMix patch comes from; where there is no
    patch, its sides are 0. `quality` is that of JPEG, 0 where an image is not saved as one.
    """

    flip: Tensor
    shift_y: Tensor
    shift_x: Tensor
    cutout_y: Tensor
    cutout_x: Tensor
    partner: Tensor
    patch_y: Tensor
    patch_x: Tensor
    patch_height: Tensor
    patch_width: Tensor
    grey: Tensor
    rescaled: Tensor
    quality: Tensor

    def select(self, index: Tensor) -> AugmentationDraws:
        """Return the choices for the images that `index`, int64 (B,), names."""
        return AugmentationDraws(*(getattr(self, field.name)[index] for field in fields(self)))

    def to(self, device: torch.device) -> AugmentationDraws:
        """Return the same choices on a device."""
        return AugmentationDraws(*(getattr(self, field.name).to(device) for field in fields(self)))

    def kept_share(self, size: int) -> Tensor:
        """Return float32 (N,): the share of each size x size image that is its own and no CutMix patch."""
        return 1 - (self.patch_height * self.patch_width) / (size * size)


def random_stream(purpose: str, seed: int, epoch: int = 0) -> torch.Generator:
    """Return a CPU generator that depends on nothing but its arguments; purposes draw independent numbers."""
    digest = hashlib.sha256(f"{purpose} {seed} {epoch}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big", signed=True))


def draw_augmentation(augmentation: Augmentation, count: int, size: int, *, seed: int, epoch: int) -> AugmentationDraws:
    """Draw the choices for `count` images of size x size pixels from (seed, epoch) alone, on the CPU.

    Every image is shifted by up to `crop_padding` pixels either way, flipped with probability 1/2, and has a square
    of `cutout` pixels a side covered (DeVries and Taylor 2017, arXiv:1708.04552). A share `cutmix` gets a patch of
    another image (Yun et al. 2019, arXiv:1905.04899), its area uniform between nothing and everything; that image, too,
    is shifted and flipped first, by its own choices. With
    `alternating_flip`, an image's first flip is random and every later epoch shows the other side (Jordan 2024,
    arXiv:2404.00498). A share `greyscale` loses its colours, a share `rescale` is blurred by scaling, and a share
    `jpeg` is saved at a quality from 40 to 95.
    """
    generator = random_stream("augmentation", seed, epoch)

    def integers(high: int) -> Tensor:
        return torch.randint(0, high, (count,), generator=generator)

    if not augmentation.flip:
        flip = torch.zeros(count, dtype=torch.bool)
    elif augmentation.alternating_flip:
        first = torch.randint(0, 2, (count,), generator=random_stream("first flips", seed))
        flip = (first + epoch) % 2 == 1
    else:
        flip = integers(2) == 1
    spread = 2 * augmentation.crop_padding + 1
    shifts = [integers(spread) - augmentation.crop_padding for _ in "yx"]
    holes = [integers(size) - augmentation.cutout // 2 for _ in "yx"]
    partner = integers(count)
    mixed = torch.rand(count, generator=generator) < augmentation.cutmix
    side = (torch.rand(count, generator=generator).sqrt() * size).round().long() * mixed
    corners = [integers(size) - side // 2 for _ in "yx"]
    starts = [corner.clamp_min(0) for corner in corners]
    ends = [(corner + side).clamp_max(size) for corner in corners]
    sides = [(end - start) * mixed for start, end in zip(starts, ends, strict=True)]
    # From a stream of their own: with or without them, all other choices are the same.
    grey, rescaled, quality = draw_corruptions(count, augmentation, random_stream("as sent", seed, epoch))
    return AugmentationDraws(
        flip=flip,
        shift_y=shifts[0],
        shift_x=shifts[1],
        cutout_y=holes[0],
        cutout_x=holes[1],
        partner=partner,
        patch_y=starts[0],
        patch_x=starts[1],
        patch_height=sides[0],
        patch_width=sides[1],
        grey=grey,
        rescaled=rescaled,
        quality=quality,
    )


def augment_batch(
    images: Tensor, index: Tensor, draws: AugmentationDraws, augmentation: Augmentation, fill: Tensor
) -> Tensor:
    """Return the training images uint8 (N, 3, S, S) that `index`, int64 (B,), names, changed: uint8 (B, 3, S, S).

    `draws` are those of all N images; all tensors are on one device. What a shift brings in from outside is the
    image's reflection; `fill`, uint8 (3,), covers the cutout square. The result is channels-last in memory.
    """
    size = images.shape[-1]
    chosen = draws.select(index)
    along = torch.arange(size, device=images.device)
    channels_last = images.permute(0, 2, 3, 1)
    changed = _cropped_and_flipped(channels_last, index, chosen)
    if augmentation.cutmix:
        partners = _cropped_and_flipped(channels_last, chosen.partner, draws.select(chosen.partner))
        patch = _box(along, chosen.patch_y, chosen.patch_x, chosen.patch_height, chosen.patch_width)
        changed = torch.where(patch, partners, changed).contiguous()
    if augmentation.greyscale or augmentation.rescale or augmentation.jpeg:
        # After the crop: at serving, too, JPEG's blocks begin at the corner of the picture.
        sent = apply_corruptions(changed.permute(0, 3, 1, 2), chosen.grey, chosen.rescaled, chosen.quality)
        changed = sent.permute(0, 2, 3, 1).contiguous()
    if augmentation.cutout:
        side = torch.full_like(chosen.cutout_y, augmentation.cutout)
        hole = _box(along, chosen.cutout_y, chosen.cutout_x, side, side)
        changed = torch.where(hole, fill, changed)
    return changed.permute(0, 3, 1, 2)


def _cropped_and_flipped(channels_last: Tensor, index: Tensor, chosen: AugmentationDraws) -> Tensor:
    """Return the images of (N, S, S, 3) that `index`, int64 (B,), names, shifted and flipped as `chosen` for these."""
    size = channels_last.shape[1]
    along = torch.arange(size, device=channels_last.device)
    rows = _reflect(along + chosen.shift_y[:, None], size)
    columns = _reflect(along + chosen.shift_x[:, None], size)
    columns = torch.where(chosen.flip[:, None], size - 1 - columns, columns)
    return channels_last[index[:, None, None], rows[:, :, None], columns[:, None, :]]


def _reflect(position: Tensor, size: int) -> Tensor:
    """Fold positions outside 0..size-1 back inside, the border pixel itself not repeated."""
    position = position.abs()
    return size - 1 - (size - 1 - position).abs()


def _box(along: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return bool (B, S, S, 1): whether a pixel lies in the image's box; boxes may reach over the border."""
    rows = (along >= top[:, None]) & (along < (top + height)[:, None])
    columns = (along >= left[:, None]) & (along < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :])[..., None]
