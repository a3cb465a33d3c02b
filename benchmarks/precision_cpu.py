"""float32 against bfloat16 in the service's own engine on this CPU: interleaved rounds, medians.

python -m benchmarks.precision_cpu
"""

from __future__ import annotations

import statistics
import time

import numpy as np
import torch

from app.engine import TorchEngine
from app.settings import SHIPPED_WEIGHTS
from benchmarks.machine import write
from model import checkpoint
from model.precision import has_fast_bfloat16

ROUNDS = 7
BATCH_SIZES = (1, 8, 32)


def main() -> None:
    """Measure images/s and how far answers of one image move when it shares a batch."""
    source = checkpoint.load(SHIPPED_WEIGHTS)
    engines = {
        precision: TorchEngine(source, device="cpu", precision=precision, batch_sizes=BATCH_SIZES, threads=0)
        for precision in ("float32", "bfloat16")
    }
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH_SIZES[-1], 3, 32, 32), dtype=np.uint8)
    rates: dict[str, dict[str, list[float]]] = {p: {str(n): [] for n in BATCH_SIZES} for p in engines}
    for precision, engine in engines.items():
        engine.warm_up()
        engine.self_test()
        print(precision, "warm")
    for _ in range(ROUNDS):
        for size in BATCH_SIZES:
            for precision, engine in engines.items():
                started = time.perf_counter()
                engine.run(images[:size])
                rates[precision][str(size)].append(round(size / (time.perf_counter() - started), 1))
    medians = {p: {n: statistics.median(values) for n, values in by_size.items()} for p, by_size in rates.items()}
    write(
        "precision_cpu.json",
        {
            "command": "python -m benchmarks.precision_cpu",
            "auto_chooses": "bfloat16" if has_fast_bfloat16(torch.device("cpu")) else "float32",
            "images_per_s_median": medians,
            "bfloat16_over_float32": {
                n: round(medians["bfloat16"][n] / medians["float32"][n], 2) for n in medians["float32"]
            },
            "largest_difference_single_to_batched": {p: _single_to_batched(e, images) for p, e in engines.items()},
            "rounds": rates,
        },
    )


def _single_to_batched(engine: TorchEngine, images: np.ndarray) -> float:
    alone = np.concatenate([engine.run(images[i : i + 1]) for i in range(len(images))])
    return float(np.abs(alone - engine.run(images)).max())


if __name__ == "__main__":
    main()
