"""The engine's accuracy and calibration on the 10,000 test images in float32, bfloat16 and int8.

python -m benchmarks.precisions --root data
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from app.backends.choice import open_backend
from app.engine import CheckpointEngine
from app.settings import Settings
from benchmarks.records import write
from model import checkpoint
from model.data import load_cifar10
from model.evaluate import score

BATCH = 50


def main() -> None:
    """Score the test set in each precision, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py [%(default)s]")
    dataset = load_cifar10(parser.parse_args().root, train=False)
    images = dataset.images.numpy()
    results, runtimes = {}, {}
    for precision in ("float32", "bfloat16", "int8"):
        settings = Settings(device="cpu", precision=precision)
        source = checkpoint.load(settings.weights)
        engine = CheckpointEngine(source, open_backend(source, settings))
        answers = [engine.run(images[start : start + BATCH]) for start in range(0, len(images), BATCH)]
        scores = score(torch.from_numpy(np.concatenate(answers)), dataset)
        runtimes[precision] = engine.card["runtime"]
        results[precision] = {"top1": scores.top1, "ece": round(scores.ece, 5), "nll": round(scores.nll, 4)}
        print(precision, results[precision], flush=True)
    write(
        "precisions_cpu.json",
        {
            "command": "python -m benchmarks.precisions",
            "version": source.version,
            "runtimes": runtimes,
            "test_set": results,
        },
    )


if __name__ == "__main__":
    main()
