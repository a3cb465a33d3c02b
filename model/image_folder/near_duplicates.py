"""Near-duplicates: pictures to measure on that look like training pictures, such as a photo saved anew.

Two pictures look alike if their thumbnails, the means of 8 x 8 fields, differ by little (root of the mean square)
beside their contrast: how far they are from one colour, or from the mean of all thumbnails, whichever is less. The
first keeps small things before a bright sky apart, the second pictures of one camera that stands still.

Measured on CIFAR-10, whose test set is known to hold near-duplicates (Barz and Denzler 2020, "Do We Train on Test
Data?", arXiv:1902.00423), most of them cropped or enlarged otherwise: of 10,000 test and 50,000 training pictures, 38
pairs are within ALIKE, none of them false as far as one can see. Of 500 test pictures enlarged to 256 pixels and saved
anew as JPEG of quality 30, 499 are known again; the other one has too little contrast. `test_near_duplicates.py`
counts.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

SIDE = 8
ALIKE = 0.2
LEAST_CONTRAST = 8.0  # grey levels; below that it is the noise that decides
MAX_PAIRS = 50_000_000  # two cores compare so many in a second
PART = 1024  # thumbnails
PART_BYTES = 64 << 20


def in_floats(images: Tensor) -> Iterator[Tensor]:
    """Yield uint8 (N, 3, S, S) as float32 (n, 3, S, S), so many at a time that little memory is needed besides."""
    for part in torch.split(images, max(1, PART_BYTES // (4 * images.shape[1:].numel()))):
        yield part.float()


def thumbnails(images: Tensor) -> Tensor:
    """Reduce uint8 (N, 3, S, S) to float32 (N, 192), grey levels."""
    return torch.cat([functional.adaptive_avg_pool2d(part, SIDE).flatten(1) for part in in_floats(images)])


def compared(trained: int, tested: int) -> Tensor:
    """Return which of so many test pictures are compared with so many training pictures, > 0: int64 (M,), rising.

    All of them, or of more than MAX_PAIRS pairs as many as that allows, at even distances.
    """
    count = min(tested, max(1, MAX_PAIRS // trained))
    return torch.arange(count) * tested // max(1, count)


def near_duplicates(trained: Tensor, tested: Tensor) -> list[tuple[int, int]]:
    """Return (i, j) for each test thumbnail i that has a training thumbnail which looks like it: the nearest one, j.

    Both are float32 (N, 192), N > 0, from `thumbnails`. Of the test thumbnails those that are `compared` are looked at.
    """
    mean = trained.mean(dim=0)
    contrast = _contrast(trained, mean)
    trained = trained - mean  # small numbers: torch.cdist subtracts squares
    found = []
    for part in torch.split(compared(len(trained), len(tested)), PART):
        tested_contrast = _contrast(tested[part], mean)
        distance, nearest = torch.cdist(tested[part] - mean, trained).min(dim=1)
        least = torch.minimum(tested_contrast, contrast[nearest])
        alike = (least >= LEAST_CONTRAST) & (distance / trained.shape[1] ** 0.5 <= ALIKE * least)
        chosen = alike.nonzero()[:, 0]
        found += list(zip(part[chosen].tolist(), nearest[chosen].tolist(), strict=True))
    return found


def _contrast(thumbs: Tensor, mean: Tensor) -> Tensor:
    """Return how far each of float32 (N, 192) is from its own mean colour or from `mean`, in grey levels: (N,)."""
    fields = thumbs.reshape(len(thumbs), 3, -1)
    own = (fields - fields.mean(dim=2, keepdim=True)).square().mean(dim=(1, 2))
    return torch.minimum(own, (thumbs - mean).square().mean(dim=1)).sqrt()
