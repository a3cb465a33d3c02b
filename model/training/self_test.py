"""The pictures that a checkpoint carries, whose answers an engine has to reproduce before it serves."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from model.calibration import Calibration
from model.data import Dataset
from model.evaluate import compute_logits

SELF_TEST_COUNT = 16
CANDIDATES = 50 * SELF_TEST_COUNT


def choose_self_test(
    network: nn.Module, held: Dataset, training: Dataset, calibration: Calibration
) -> tuple[Tensor, Tensor]:
    """Choose images whose answers would move if anything were wrong.

    Of the first CANDIDATES held-out images; where these are fewer than SELF_TEST_COUNT, training images fill them up.
    Half are the least certain ones, half are evenly spaced over the others; none is there twice. Returns them and
    their probabilities, uint8 (K, 3, S, S) and float32 (K, classes), K being SELF_TEST_COUNT or, if there are not so
    many different images, their number.
    """
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


def _distinct(images: Tensor) -> Tensor:
    """Return the first of each of equal images, uint8 (N, 3, S, S), in their order."""
    first: dict[bytes, int] = {}
    for number, image in enumerate(images):
        first.setdefault(hashlib.sha256(image.numpy().tobytes()).digest(), number)
    return images[list(first.values())]
