"""A network's scores: accuracy, negative log-likelihood and calibration error, and which answers were wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from model.batch_sizes import batch_size_for
from model.data import Dataset
from model.hardware.cudnn import cudnn_switched
from model.transforms import normalise, resize_batch

if TYPE_CHECKING:
    from model.checkpoint import Checkpoint

ECE_BINS = 15

MAX_BATCH_SIZE = 500  # images, see batch_size_for


@dataclass(frozen=True)
class Scores:
    """The result of `score`. Shares are fractions of one; nll is in nats per image.

    `per_class` is the share of each class's images that are classified correctly, None for a class without images.
    `balanced_accuracy` is the mean of the others.
    """

    split: str
    images: int
    top1: float
    balanced_accuracy: float
    nll: float
    ece: float
    per_class: dict[str, float | None]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a JSON-ready dictionary."""
        return asdict(self)


@cudnn_switched("allow_tf32", False)  # by default cuDNN rounds what it convolves in float32 to ten bits
@torch.inference_mode()
def compute_logits(
    network: nn.Module,
    images: Tensor,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    size: int | None = None,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """Return float32 logits (N, classes) on the CPU of uint8 images (N, 3, S, S), in evaluation mode.

    `size` resizes the batch first (progressive training); `autocast` computes in that dtype, else it is float32.
    """
    batch_size = batch_size_for(max(images.shape[-1], size or 0), MAX_BATCH_SIZE)
    device = next(network.parameters()).device
    channel_mean, channel_std = torch.tensor(mean, device=device), torch.tensor(std, device=device)
    was_training = network.training
    network.eval()
    parts = []
    for start in range(0, max(1, len(images)), batch_size):  # once for no images, too: of a few, a process may get none
        batch = normalise(images[start : start + batch_size].to(device), channel_mean, channel_std)
        batch = resize_batch(batch, size or batch.shape[-1]).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            parts.append(network(batch).float().cpu())
    network.train(was_training)
    return torch.cat(parts)


@dataclass(frozen=True)
class CalibrationBin:
    """The images whose confidence is in [lower, upper), and in the last bin 1.0 too.

    `accuracy` and `confidence` are their means, fractions of one; both are None in a bin without images.
    """

    lower: float
    upper: float
    images: int
    accuracy: float | None
    confidence: float | None


def calibration_bins(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> list[CalibrationBin]:
    """Sort the answers float (N, classes) to labels int64 (N,) into bins of equal width by their confidence.

    Confidence is the probability of the predicted class (Guo et al. 2017, arXiv:1706.04599).
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    counts = torch.bincount(index, minlength=bins).tolist()
    accuracies = torch.zeros(bins, dtype=torch.double).index_add_(0, index, correct).tolist()
    confidences = torch.zeros(bins, dtype=torch.double).index_add_(0, index, confidence.double()).tolist()
    return [
        CalibrationBin(
            lower=i / bins,
            upper=(i + 1) / bins,
            images=count,
            accuracy=accuracies[i] / count if count else None,
            confidence=confidences[i] / count if count else None,
        )
        for i, count in enumerate(counts)
    ]


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Return the expected calibration error of float (N, classes) against int64 (N,): bins of equal width.

    The mean over images of |accuracy - confidence| of the image's bin (Guo et al. 2017, arXiv:1706.04599).
    """
    gaps = [
        interval.images * abs(interval.accuracy - interval.confidence)
        for interval in calibration_bins(probabilities, labels, bins)
        if interval.accuracy is not None and interval.confidence is not None
    ]
    return sum(gaps) / len(labels)


def confusion_matrix(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Count the images by true class (row) and predicted class (column): int64 (classes, classes).

    `probabilities` float (N, classes), `labels` int64 (N,).
    """
    classes = probabilities.shape[1]
    pairs = labels * classes + probabilities.argmax(dim=1)
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def confusions(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return what is not zero of the confusion matrix: int64 (M, 3) of true class, predicted class and images.

    In the order of the classes; M is N at most, however many classes there are. Arguments as `confusion_matrix` has.
    """
    pairs = torch.stack((labels, probabilities.argmax(dim=1)), dim=1)
    found, counts = torch.unique(pairs, dim=0, return_counts=True)
    return torch.cat((found, counts[:, None]), dim=1)


def class_accuracies(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the share of each class's images that are classified correctly, float64 (classes,), NaN where it has none.

    `probabilities` float (N, classes), `labels` int64 (N,).
    """
    classes = probabilities.shape[1]
    right = torch.bincount(labels[probabilities.argmax(dim=1) == labels], minlength=classes)
    return right.double() / torch.bincount(labels, minlength=classes)


def balanced_accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Return the mean of the classes' accuracies, a fraction of one.

    `probabilities` float (N, classes), `labels` int64 (N,). A class counts as much with few images as with many, one
    without any does not. Brodersen et al. 2010, "The Balanced Accuracy and Its Posterior Distribution" (ICPR).
    """
    shares = class_accuracies(probabilities, labels)
    return float(shares[~shares.isnan()].mean())


def most_confidently_wrong(probabilities: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return the indices, int64 (up to `count`,), of the wrongly classified images, the most confident first.

    `probabilities` float (N, classes), `labels` int64 (N,). Equally confident ones are in the dataset's order.
    """
    confidence, predicted = probabilities.max(dim=1)
    wrong = (predicted != labels).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:count]


def score(probabilities: Tensor, dataset: Dataset) -> Scores:
    """Compare float32 probabilities (N, classes) with a dataset's N labels."""
    labels = dataset.labels
    correct = (probabilities.argmax(dim=1) == labels).double()
    picked = probabilities[torch.arange(len(labels)), labels].double()
    shares = class_accuracies(probabilities, labels).tolist()
    per_class = {name: None if isnan(share) else share for name, share in zip(dataset.classes, shares, strict=True)}
    return Scores(
        split=f"{dataset.name} {dataset.split}",
        images=len(labels),
        top1=float(correct.mean()),
        balanced_accuracy=balanced_accuracy(probabilities, labels),
        nll=float(-picked.clamp_min(1e-12).log().mean()),
        ece=expected_calibration_error(probabilities, labels),
        per_class=per_class,
    )


def score_checkpoint(source: Checkpoint, dataset: Dataset, device: torch.device) -> tuple[Scores, Tensor]:
    """Score a checkpoint in float32 on `device`; return its scores and the float32 probabilities (N, classes)."""
    metadata = source.metadata
    logits = compute_logits(source.network().to(device), dataset.images, metadata.mean, metadata.std)
    probabilities = metadata.calibration.probabilities(logits)
    return score(probabilities, dataset), probabilities


def as_result(name: str, version: str, source: str, scores: dict[str, Any]) -> dict[str, Any]:
    """Return the scores of a model as JSON files hold them.

    `name` and `version` are the model's; `source` says who computed the answers: "checkpoint" or "service".
    """
    return {"model": name, "version": version, "source": source, **scores}
