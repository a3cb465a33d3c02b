"""The pictures that a checkpoint carries, whose answers an engine has to reproduce before it serves."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from model.calibration import Calibration
from model.data import Dataset
from model.evaluate import compute_logits
from model.training.augment import random_stream
from model.transforms import Triple

SELF_TEST_COUNT = 16
CANDIDATES = 50 * SELF_TEST_COUNT
SYNTHETIC_CANDIDATES = 8 * SELF_TEST_COUNT  # at 512 pixels they take 100 MB

# Of the noise that synthetic images are made of: how much of it is the same in all channels, as in pictures, where most
# differences are of brightness.
GREY_SHARE = 0.8


def choose_self_test(
    network: nn.Module, held: Dataset, training: Dataset, calibration: Calibration, *, synthetic: bool = False
) -> tuple[Tensor, Tensor]:
    """Choose images whose answers would move if anything were wrong.

    Of the first CANDIDATES held-out images; where these are fewer than SELF_TEST_COUNT, training images fill them up.
    With `synthetic` of `synthetic_images` instead. Half are the least certain ones, half are evenly spaced over the
    others; none is there twice. Returns them and their probabilities, uint8 (K, 3, S, S) and float32 (K, classes), K
    being SELF_TEST_COUNT or, if there are not so many different images, their number.
    """
    if synthetic:
        candidates = synthetic_images(training.images.shape[-1], training.mean, training.std)
    else:
        candidates = _distinct(held.images[:CANDIDATES])
        if len(candidates) < SELF_TEST_COUNT:
            candidates = _distinct(torch.cat([candidates, training.images[:CANDIDATES]]))[:SELF_TEST_COUNT]
    logits = compute_logits(network, candidates, training.mean, training.std)
    probabilities = calibration.probabilities(logits)
    half = SELF_TEST_COUNT // 2
    least_certain = probabilities.amax(dim=1).argsort()[:half]
    is_other = torch.ones(len(candidates), dtype=torch.bool)
    is_other[least_certain] = False
    others = is_other.nonzero().flatten()
    chosen = torch.cat([least_certain, others[:: max(1, len(others) // half)][:half]])
    return candidates[chosen], probabilities[chosen]


def synthetic_images(size: int, mean: Triple, std: Triple) -> Tensor:
    """Make images that are of nobody's pictures, uint8 (SYNTHETIC_CANDIDATES, 3, size, size): always the same ones.

    Each is a mixture of noise of 2, 4, 8, ... pixels a side, enlarged to `size`, with about the channels' mean and std.
    In the first ones coarse noise prevails, in the last ones all is alike: pictures lie in between.
    """
    generator = random_stream("self-test images", seed=0)
    channel_mean, channel_std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    sides = [side for side in (2**power for power in range(1, 16)) if side < size] + [size]
    images = torch.empty(SYNTHETIC_CANDIDATES, 3, size, size, dtype=torch.uint8)
    for image, falloff in zip(images, torch.linspace(1.5, 0, SYNTHETIC_CANDIDATES).tolist(), strict=True):
        mixed = torch.zeros(3, size, size)
        for side in sides:
            grey, colours = (torch.randn(1, count, side, side, generator=generator) for count in (1, 3))
            noise = GREY_SHARE * grey + (1 - GREY_SHARE**2) ** 0.5 * colours
            mixed += side**-falloff * functional.interpolate(noise, size=size, mode="bilinear")[0]
        mixed = (mixed - mixed.mean()) / mixed.std() + 0.4 * torch.randn(1, generator=generator)  # some are darker
        image.copy_(((channel_mean + channel_std * mixed) * 255).round().clamp(0, 255))
    return images


def _distinct(images: Tensor) -> Tensor:
    """Return the first of each of equal images, uint8 (N, 3, S, S), in their order."""
    first: dict[bytes, int] = {}
    for number, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), number)
    return images[list(first.values())]
