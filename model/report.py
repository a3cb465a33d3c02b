"""What people look at after a run: learning curves, confusion matrix, reliability diagram, the worst mistakes.

Numbers come from `model.evaluate` and are left beside the pictures in `report.json`. matplotlib is imported late:
it is an optional extra, and nothing else here needs it. Colours are Okabe and Ito's, which colour-blind people can
tell apart (https://jfly.uni-koeln.de/color/).
"""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from model.checkpoint import write_atomically
from model.data import Dataset
from model.evaluate import (
    balanced_accuracy,
    calibration_bins,
    confusion_matrix,
    confusions,
    expected_calibration_error,
    most_confidently_wrong,
)
from model.extras import MissingExtra

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MISSING_LETTER = re.compile(r"Glyph (\d+) .*missing from")

BLUE, SKY, ORANGE, GREY = "#0072B2", "#56B4E9", "#D55E00", "#666666"
MAX_WRONG = 20
MAX_CLASSES_WITH_NUMBERS = 20
MAX_CLASSES_WITH_NAMES = 120
MAX_CLASSES_IN_A_MATRIX = 1000  # a cell for each two of them: a million numbers, and hardly a pixel each
MAX_NAME_LENGTH = 18
MAX_LETTERS = 20


def require_matplotlib() -> None:
    """Raise MissingExtra if pictures cannot be drawn."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise MissingExtra("drawing the report", "plots", error) from error


def _figure(width: float, height: float, title: str) -> Figure:
    """Return a figure of that size in inches. Without pyplot: no window system, no state that threads share."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=13)
    return figure


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")  # Agg, whatever the user's configuration says
    return buffer.getvalue()


@contextmanager
def _missing_letters_said_once() -> Iterator[None]:
    """Say in the log which letters no font has, in place of matplotlib's warning for each picture and letter."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.filterwarnings("always", message=MISSING_LETTER.pattern)
        yield
    missing = set()
    for warning in caught:
        if letter := MISSING_LETTER.match(str(warning.message)):
            missing.add(chr(int(letter[1])))
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if missing:
        some = " ".join(sorted(missing)[:MAX_LETTERS]) + (" ..." if len(missing) > MAX_LETTERS else "")
        log.warning("matplotlib's font has no letter for %s: in the pictures there are boxes instead", some)


def _name(text: str) -> str:
    """Return a class name that fits: shortened, and without a formula between dollar signs."""
    short = text if len(text) <= MAX_NAME_LENGTH else text[: MAX_NAME_LENGTH - 1] + "…"
    return short.replace("$", r"\$")


def _file_name(path: str) -> str:
    """Return the name of a file as it fits; what cannot be printed in it is a question mark."""
    return _name("".join(letter if letter.isprintable() else "?" for letter in Path(path).name))


def draw_learning_curves(lines: list[dict[str, Any]]) -> bytes:
    """Draw the lines of `metrics.jsonl` over the epochs and return a PNG; quantities that no line has are left out."""
    augmented = "training, augmented images"
    panels: list[tuple[str, dict[str, str | None], int]] = [
        ("loss (nats per image)", {"loss": augmented, "held_out_nll": "held-out, without label smoothing"}, 1),
        ("accuracy (%)", {"accuracy": augmented, "held_out_accuracy": "held-out"}, 100),
        ("learning rate at the end of the epoch", {"learning_rate": None}, 1),
        ("training speed (images/s)", {"images_per_s": None}, 1),
    ]
    grown = [(after["epoch"], after["size"]) for before, after in pairwise(lines) if before["size"] != after["size"]]
    title = f"Learning curves, {len(lines)} epoch{'s' if len(lines) > 1 else ''}"
    if grown:  # curves may jump there
        title += "\ndotted: images of " + ", ".join(f"{size} px from epoch {epoch}" for epoch, size in grown)
    figure = _figure(11, 7.5, title)
    for axes, (quantity, curves, scale) in zip(figure.subplots(2, 2, sharex=True).flat, panels, strict=True):
        for (key, label), colour, marker in zip(curves.items(), (BLUE, ORANGE), "os", strict=False):
            there = [line for line in lines if key in line]
            epochs, values = [line["epoch"] for line in there], [line[key] * scale for line in there]
            axes.plot(epochs, values, label=label, color=colour, marker=marker if len(lines) <= 40 else None, ms=4)
        axes.set_title(quantity, fontsize=11)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        for epoch, _ in grown:
            axes.axvline(epoch - 0.5, color=GREY, linestyle=":", linewidth=1)
        if len(curves) > 1:
            axes.legend(fontsize=9)
    figure.axes[3].set_ylim(bottom=0)
    for axes in figure.axes[2:]:
        axes.set_xlabel("epoch")
    return _png(figure)


def draw_confusion_matrix(labels: Tensor, probabilities: Tensor, classes: tuple[str, ...]) -> bytes:
    """Draw which classes are taken for which, as shares of the true class, and return a PNG.

    `labels` int64 (N,), `probabilities` float (N, classes). Above 20 classes the cells hold no numbers.
    """
    from matplotlib.colors import PowerNorm

    counts = confusion_matrix(probabilities, labels)
    images = counts.sum(dim=1, keepdim=True)
    shares = counts / images  # 0 / 0, NaN, leaves the row of a class without images blank
    many = len(classes) > MAX_CLASSES_WITH_NUMBERS
    side = 15.0 if many else 3.5 + 0.6 * len(classes)
    accuracy = float(counts.diagonal().sum() / len(labels))
    title = f"Confusion matrix: {accuracy:.2%} of {len(labels):,} images right"
    figure = _figure(side + 1, side, f"{title}\nbalanced accuracy {balanced_accuracy(probabilities, labels):.2%}")
    axes = figure.subplots()
    # The square root makes a confusion of 1 % visible beside a diagonal of 90 %.
    picture = axes.imshow(shares.numpy(), cmap="cividis", norm=PowerNorm(0.5, vmin=0, vmax=1))
    bar = figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the true class (%)")
    ticks = (0, 1, 5, 10, 25, 50, 100)
    bar.set_ticks([tick / 100 for tick in ticks], labels=[str(tick) for tick in ticks])
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class" if bool(images.all()) else "true class (blank row: no images)")
    if len(classes) <= MAX_CLASSES_WITH_NAMES:
        names, size = [_name(name) for name in classes], 6 if many else 10
        turned = {"rotation": 90} if many else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(classes)), names, fontsize=size, **turned)
        axes.set_yticks(range(len(classes)), names, fontsize=size)
    if not many:
        for row, column in counts.nonzero().tolist():
            share = float(shares[row, column])
            colour = "black" if share > 0.25 else "white"
            axes.text(column, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=9, color=colour)
    return _png(figure)


def draw_reliability_diagram(labels: Tensor, probabilities: Tensor) -> bytes:
    """Draw accuracy against confidence in 15 bins over a histogram of the confidences, and return a PNG.

    `labels` int64 (N,), `probabilities` float (N, classes). Guo et al. 2017, arXiv:1706.04599.
    """
    bins = calibration_bins(probabilities, labels)
    error = expected_calibration_error(probabilities, labels)
    figure = _figure(7, 8, f"Reliability: expected calibration error {error:.2%} ({len(bins)} bins)")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    filled = [interval for interval in bins if interval.images]
    middles, width = [(interval.lower + interval.upper) / 2 for interval in filled], 0.94 / len(bins)
    accuracies = [interval.accuracy or 0.0 for interval in filled]
    confidences = [interval.confidence or 0.0 for interval in filled]
    gaps = [confidence - accuracy for confidence, accuracy in zip(confidences, accuracies, strict=True)]
    above.bar(middles, accuracies, width, color=SKY, label="accuracy")
    above.bar(
        middles, gaps, width, accuracies, fill=False, hatch="///", edgecolor=ORANGE, label="gap to the mean confidence"
    )
    above.plot([0, 1], [0, 1], color="black", linestyle="--", linewidth=1, label="perfectly calibrated")
    above.set_ylabel("accuracy (share of the bin's images)")
    above.set_ylim(0, 1)
    above.legend(loc="upper left", fontsize=9)
    below.bar(middles, [interval.images for interval in filled], width, color=SKY)
    below.set_yscale("log")
    below.set_ylim(bottom=0.8)
    below.set_ylabel("images (log scale)")
    below.set_xlabel("confidence (probability of the predicted class)")
    below.set_xlim(0, 1)
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return _png(figure)


def draw_most_wrong(dataset: Dataset, probabilities: Tensor) -> bytes:
    """Draw the twenty images (or fewer) with the highest confidence in a wrong class and return a PNG.

    `probabilities` float (N, classes) belong to the dataset's N images. Each is called by its file's name where it has
    one; "image 7" is the one at index 7.
    """
    chosen = most_confidently_wrong(probabilities, dataset.labels, MAX_WRONG).tolist()
    if not chosen:
        figure = _figure(8, 2, "Most confidently wrong")
        figure.text(0.5, 0.4, f"None of the {len(dataset):,} images is classified wrongly.", ha="center", fontsize=12)
        return _png(figure)
    columns = min(5, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = _figure(max(6, 2.2 * columns), 0.5 + 2.8 * rows, f"The most confidently wrong of {len(dataset):,} images")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, index in zip(figure.axes, chosen, strict=False):
        confidence, predicted = probabilities[index].max(dim=0)
        names = [_name(dataset.classes[int(label)]) for label in (dataset.labels[index], predicted)]
        axes.imshow(dataset.images[index].permute(1, 2, 0).numpy(), interpolation="nearest")
        image = _file_name(dataset.paths[index]) if dataset.paths else f"image {index}"
        axes.set_title(f"true: {names[0]}\npredicted: {names[1]}\n{float(confidence):.1%}, {image}", fontsize=9)
    return _png(figure)


def _has_matrix(dataset: Dataset) -> bool:
    """Return whether a report has all of the confusion matrix: that takes memory by the square of the classes."""
    return len(dataset.classes) <= MAX_CLASSES_IN_A_MATRIX


def summarise(dataset: Dataset, probabilities: Tensor) -> dict[str, Any]:
    """Return the numbers behind the pictures, JSON-ready; rows of the confusion matrix are true classes.

    Of more than MAX_CLASSES_IN_A_MATRIX there are "confusions" in its place, what is not zero of it as [true class,
    predicted class, images], both by their index in "classes". "image" is the image's index in the dataset, and "path"
    its file where it has one.
    """
    labels = dataset.labels
    name, count = ("confusion_matrix", confusion_matrix) if _has_matrix(dataset) else ("confusions", confusions)
    bins = calibration_bins(probabilities, labels)
    chosen = most_confidently_wrong(probabilities, labels, MAX_WRONG)
    confidence, predicted = probabilities[chosen].max(dim=1)
    return {
        "split": f"{dataset.name} {dataset.split}",
        "images": len(dataset),
        "classes": list(dataset.classes),
        "top1": float((probabilities.argmax(dim=1) == labels).double().mean()),
        "balanced_accuracy": balanced_accuracy(probabilities, labels),
        "ece": expected_calibration_error(probabilities, labels),
        name: count(probabilities, labels).tolist(),
        "calibration_bins": [asdict(interval) for interval in bins],
        "most_wrong": [
            {
                "image": image,
                **({"path": dataset.paths[image]} if dataset.paths else {}),
                "true": dataset.classes[true],
                "predicted": dataset.classes[guess],
                "probability": share,
            }
            for image, true, guess, share in zip(
                chosen.tolist(), labels[chosen].tolist(), predicted.tolist(), confidence.tolist(), strict=True
            )
        ],
    }


def write_report(
    folder: Path, metrics_path: Path | None, dataset: Dataset | None, probabilities: Tensor | None
) -> None:
    """Write the PNGs, and `report.json` with their numbers, into `folder`.

    What is not there is not reported on: no `metrics_path` (or an empty file), no learning curves; no `dataset` with
    its float `probabilities` (N, classes), only those; and of too many classes there is no confusion matrix.
    `report.json` is written even where drawing raises MissingExtra.
    """

    def write(name: str, data: bytes) -> None:
        write_atomically(folder / name, data)

    if dataset is not None and probabilities is not None:
        write("report.json", (json.dumps(summarise(dataset, probabilities), indent=1) + "\n").encode())
    require_matplotlib()
    lines = [json.loads(line) for line in metrics_path.read_text().splitlines()] if metrics_path else []
    with _missing_letters_said_once():
        if lines:
            write("learning_curves.png", draw_learning_curves(lines))
        if dataset is not None and probabilities is not None:
            if _has_matrix(dataset):
                write("confusion_matrix.png", draw_confusion_matrix(dataset.labels, probabilities, dataset.classes))
            write("reliability_diagram.png", draw_reliability_diagram(dataset.labels, probabilities))
            write("most_wrong.png", draw_most_wrong(dataset, probabilities))
