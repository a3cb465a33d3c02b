"""The picture of a soak: what the process held over time, drawn from the report alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Okabe and Ito's palette, distinct for all common kinds of colour vision; each panel is labelled besides.
COLOURS = {"resident_mb": "#0072B2", "open_files": "#D55E00", "threads": "#009E73", "tasks": "#CC79A7"}
LABELS = {"resident_mb": "resident memory (MB)", "open_files": "open files", "threads": "threads", "tasks": "tasks"}


def draw(report: dict[str, Any], path: Path) -> None:
    """Draw memory, files, threads and tasks against minutes, with reloads and the restart marked, as a PNG."""
    figure = Figure(figsize=(10, 8), layout="constrained")
    minutes = [one["seconds"] / 60 for one in report["samples"]]
    for axes, (name, colour) in zip(figure.subplots(4, 1, sharex=True), COLOURS.items(), strict=True):
        axes.plot(minutes, [one[name] for one in report["samples"]], ".", markersize=2, color=colour)
        for event in report["events"]:
            line = {"reload": (":", "0.6"), "SIGTERM": ("-", "0.3")}.get(event["event"])
            if line:
                axes.axvline(event["seconds"] / 60, linestyle=line[0], color=line[1], linewidth=1)
        axes.set_ylabel(LABELS[name])
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    axes.set_xlabel("minutes")
    figure.suptitle(
        "Mixed traffic; dotted: the checkpoint exchanged and reloaded; solid: SIGTERM, another process takes over"
    )
    figure.savefig(path, dpi=120)
