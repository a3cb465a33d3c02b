"""Does the training runs again whose figures this project claims: `python -m benchmarks.training [NAME ...]`.

A name stands for one run, or for a chain of runs each of which starts from the checkpoint of the one before. Their
folders are runs/NAME-1, runs/NAME-2, ...; benchmarks/training/NAME.json keeps the commands, the metrics of every epoch,
the seconds, and the last checkpoint's scores on the test set. A run that was broken off is resumed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.records import FOLDER
from model.hardware.machine import describe

ROOT = FOLDER.parent

# The shipped checkpoint: trained without a GPU, where a lower cycle after the first costs less than one long one.
SHIPPED = (
    ["--preset", "cpu", "--device", "cpu"],
    ["--preset", "cpu-finish", "--device", "cpu"],
    ["--preset", "cpu-finish", "--device", "cpu", "--phases", "24:2,32:3", "--learning-rate", "0.08", "--seed", "1"],
    # Pictures as people send them. Averaged with the network before it, it has learnt these and forgotten nothing.
    [
        *("--preset", "cpu-finish", "--device", "cpu", "--phases", "32:2", "--learning-rate", "0.04", "--seed", "2"),
        *("--label-smoothing", "0.05", "--jpeg", "0.25", "--greyscale", "0.05", "--rescale", "0.1"),
        *("--keep-initial", "0.3"),
    ],
    # Another whole cycle, with such pictures from its beginning on, and with crops as in the first run.
    [
        *("--preset", "cpu", "--device", "cpu", "--phases", "24:5,32:10", "--seed", "3"),
        *("--jpeg", "0.25", "--greyscale", "0.05", "--rescale", "0.1"),
    ],
    # And another whole cycle.
    [
        *("--preset", "cpu", "--device", "cpu", "--phases", "24:4,32:14", "--seed", "4", "--label-smoothing", "0.05"),
        *("--jpeg", "0.25", "--greyscale", "0.05", "--rescale", "0.1"),
    ],
    # The network began to overfit, so here a part of each image is blacked out.
    [
        *("--preset", "cpu", "--device", "cpu", "--phases", "24:3,32:15", "--seed", "5", "--cutout", "8"),
        *("--label-smoothing", "0.05", "--jpeg", "0.25", "--greyscale", "0.05", "--rescale", "0.1"),
    ],
)

RUNS: dict[str, tuple[list[str], ...]] = {"shipped": SHIPPED} | {
    f"{preset}-{seed}": (["--preset", preset, "--device", "cuda", "--seed", str(seed)],)
    for preset in ("fast", "standard", "best")
    for seed in (0, 1, 2)
}


def commands_of(name: str, root: Path) -> list[list[str]]:
    """Return the `resnet train` commands of a name; only the last one evaluates on the test set."""
    commands: list[list[str]] = []
    for number, flags in enumerate(RUNS[name], 1):
        command = [
            "resnet",
            "train",
            "--data",
            "cifar10",
            "--root",
            str(root),
            *flags,
            "--out",
            f"runs/{name}-{number}",
        ]
        if number > 1:
            command += ["--init-from", f"runs/{name}-{number - 1}/checkpoint.safetensors"]
        if number < len(RUNS[name]):
            command += ["--no-report"]
        commands.append(command)
    return commands


def record_of(commands: list[list[str]], folders: list[Path]) -> dict[str, Any]:
    """Return the record of runs from their folders: seconds, metrics, and the evaluation in the last folder.

    Each run's machine is this one.
    """
    machine = describe()
    runs = []
    for command, folder in zip(commands, folders, strict=True):
        metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        settings = json.loads((folder / "settings.json").read_text())
        timing = folder / "timing.json"
        runs.append(
            {
                "command": " ".join(command),
                "seed": settings["recipe"]["seed"],
                "device": settings["device"],
                "machine": machine,
                "epochs": len(metrics),
                "training_seconds": round(metrics[-1]["seconds"], 1),
                "seconds": json.loads(timing.read_text()) if timing.exists() else None,
                "metrics": metrics,
            }
        )
    evaluation = json.loads((folders[-1] / "evaluation.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return {
        "commit": commit.stdout.strip() or None,
        "training_seconds": round(sum(run["training_seconds"] for run in runs), 1),
        "top1": evaluation["top1"],
        "ece": evaluation["ece"],
        "version": evaluation["version"],
        "runs": runs,
    }


def main() -> None:
    """Do the named runs, by default those for this machine's device, and write their records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(RUNS)} [with a GPU all but the first, else that one]")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py [%(default)s]")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - RUNS.keys()
    if unknown:
        parser.error(f"no run named {', '.join(sorted(unknown))}")
    gpu = torch.cuda.is_available()
    for name in arguments.names or [name for name in RUNS if (name != "shipped") == gpu]:
        commands = commands_of(name, arguments.root)
        for command in commands:
            print(" ".join(command), flush=True)
            subprocess.run([sys.executable, "-m", "app.cli", *command[1:]], cwd=ROOT, check=True)
        record = record_of(commands, [ROOT / f"runs/{name}-{number}" for number in range(1, len(commands) + 1)])
        path = FOLDER / "training" / f"{name}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"{path}: top-1 {record['top1']:.4f}, ece {record['ece']:.4f}, {record['training_seconds']:.0f} s")


if __name__ == "__main__":
    main()
