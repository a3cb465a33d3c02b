"""The two pictures of benchmarks.degradation, drawn from its records alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct for all common kinds of colour vision; line styles distinguish the shortcuts.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
STYLES = {"identity": "-", "none": "--"}
SMOOTHED_STEPS = 20
DPI = 150

Record = dict[str, Any]


def _name(record: Record) -> str:
    layers = record["arch"].removeprefix("resnet")
    return f"{'residual' if record['shortcut'] == 'identity' else 'plain'}, {layers} layers"


def _depths(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(record["arch"] for record in records))


def _conditions(records: list[Record]) -> str:
    settings = records[0]["settings"]
    return (
        f"CIFAR-10, {settings['images']:,} training images, batch {settings['batch_size']}, "
        f"one cycle to {settings['learning_rate']}, seed {settings['seed']}"
    )


def _finish(axes: Axes, title: str, x_label: str, y_label: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.3)


def draw_loss(records: list[Record], path: Path) -> None:
    """Draw training loss (running mean) and held-out accuracy of every network against epochs, as a PNG."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    depths = _depths(records)
    window = 1
    for record in records:
        line = {"color": COLOURS[depths.index(record["arch"])], "linestyle": STYLES[record["shortcut"]]}
        losses = np.array(record["loss"])
        window = min(SMOOTHED_STEPS, len(losses))
        epochs = np.arange(1, len(losses) + 1) * record["settings"]["epochs"] / len(losses)
        left.plot(epochs[window - 1 :], np.convolve(losses, np.ones(window) / window, "valid"), **line)
        accuracies = 100 * np.array(record["held_out_accuracy"])
        right.plot(np.arange(1, len(accuracies) + 1), accuracies, marker="o", label=_name(record), **line)
    _finish(left, f"Training loss, mean of {window} steps", "epochs", "cross-entropy (nats)")
    images = records[0]["settings"]["held_out"]
    _finish(right, f"Accuracy on {images:,} held-out images", "epochs", "top-1 (%)")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend()
    figure.suptitle(f"Plain and residual networks: {_conditions(records)}", fontsize=11)
    figure.savefig(path, dpi=DPI)


def draw_gradients(records: list[Record], path: Path) -> None:
    """Draw the gradient norm of every convolution on the main path, from the first to the last, as a PNG.

    One row for each depth; columns: before the first step, at the end of the first epoch, at the end of the last.
    """
    depths = _depths(records)
    epochs = records[0]["settings"]["epochs"]
    moments = {0: "before the first step", 1: "end of epoch 1", epochs: f"end of epoch {epochs}"}
    figure = Figure(figsize=(3.6 * len(moments), 3 * len(depths) + 0.5), layout="constrained")
    grid = figure.subplots(len(depths), len(moments), sharey=True, squeeze=False)
    for record in records:
        row = depths.index(record["arch"])
        names = record["convolutions"]
        main_path = [i for i, name in enumerate(names) if ".shortcut." not in name]
        stages = [names[i].rpartition(".")[0].split(".")[:2] for i in main_path]
        for axes, (moment, title) in zip(grid[row], moments.items(), strict=True):
            norms = np.array(record["gradients"][moment]["norms"])[main_path]
            axes.plot(
                np.arange(1, len(norms) + 1),
                norms,
                color=COLOURS[row],
                linestyle=STYLES[record["shortcut"]],
                marker="." if record["shortcut"] == "identity" else "x",
                markersize=4,
                linewidth=1,
                label=_name(record),
            )
            axes.set_yscale("log")
            for i in range(1, len(stages)):
                if record["shortcut"] == "none" and stages[i] != stages[i - 1]:
                    axes.axvline(i + 0.5, color="0.6", linewidth=0.8, linestyle=":")
            _finish(axes, title, "convolution (1 is next to the image)", "")
        grid[row][0].set_ylabel("L2 norm of its gradient")
        grid[row][0].legend(fontsize=8)
    figure.suptitle(f"How much gradient reaches each layer: {_conditions(records)}", fontsize=11)
    figure.savefig(path, dpi=DPI)
