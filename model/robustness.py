"""How much of a network's accuracy is left on what people send: saved as JPEG, grey, scaled by another program.

Every corruption is deterministic, works on one picture with Pillow, and ends in the service's own evaluation
transform, so the pixels are those that the service would have decoded.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from model.calibration import Calibration
from model.data import Dataset
from model.evaluate import Scores, compute_logits, score
from model.transforms import evaluation_transform

CLEAN = "clean"
CHUNK = 500  # images corrupted at a time, so that a copy of the whole dataset is never held


def _reencoded(picture: Image.Image, image_format: str, quality: int) -> Image.Image:
    """Save and load; Pillow's defaults otherwise, so JPEG has its chroma at half the resolution."""
    buffer = io.BytesIO()
    picture.save(buffer, image_format, quality=quality)
    return Image.open(buffer).convert("RGB")


def _grey(picture: Image.Image) -> Image.Image:
    return picture.convert("L").convert("RGB")


def _upscaled(picture: Image.Image, factor: int) -> Image.Image:
    return picture.resize((factor * picture.width, factor * picture.height), Image.Resampling.BICUBIC)


CORRUPTIONS: dict[str, Callable[[Image.Image], Image.Image]] = {
    CLEAN: lambda picture: picture,
    "jpeg-95": partial(_reencoded, image_format="JPEG", quality=95),
    "jpeg-75": partial(_reencoded, image_format="JPEG", quality=75),
    "jpeg-50": partial(_reencoded, image_format="JPEG", quality=50),
    "webp-75": partial(_reencoded, image_format="WEBP", quality=75),
    "greyscale": _grey,
    "upscaled-4x": partial(_upscaled, factor=4),
}


def corrupt(images: Tensor, name: str) -> Tensor:
    """Return uint8 (N, 3, S, S) as the service would see them after the corruption `name`, in the same form.

    "jpeg-Q" and "webp-Q" are saved at that quality, "greyscale" loses its colours, "upscaled-4x" is enlarged
    four times (bicubic) and brought back by `evaluation_transform`. Raises KeyError for another name.
    """
    change = CORRUPTIONS[name]
    size = images.shape[-1]
    pictures = (Image.fromarray(pixels) for pixels in images.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    changed = [evaluation_transform(change(picture), size) for picture in pictures]
    return torch.from_numpy(np.stack(changed))


def score_corrupted(
    network: nn.Module,
    dataset: Dataset,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    calibration: Calibration,
    *,
    names: Iterable[str],
    progress: Callable[[int], object] | None = None,
) -> dict[str, Scores]:
    """Score a calibrated network on a dataset under each corruption of `names`, in float32.

    `progress` is told the number of images after each chunk of them.
    """
    scores = {}
    for name in names:
        parts = []
        for start in range(0, len(dataset), CHUNK):
            images = corrupt(dataset.images[start : start + CHUNK], name)
            parts.append(compute_logits(network, images, mean, std))
            if progress:
                progress(len(images))
        scores[name] = score(calibration.probabilities(torch.cat(parts)), dataset)
    return scores


def robustness_table(scores: dict[str, Scores]) -> dict[str, dict[str, float]]:
    """Return top1, its change against "clean", nll and ece of every corruption, JSON-ready. Shares are of one."""
    clean = scores[CLEAN].top1
    return {
        name: {"top1": result.top1, "top1_change": result.top1 - clean, "nll": result.nll, "ece": result.ece}
        for name, result in scores.items()
    }
