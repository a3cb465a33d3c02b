"""A training run of seconds on 64 pictures of noise, for tests that need one in processes of its own.

    python tests/toy_training.py OUT [--seconds-a-step S] [--batch-size N]

Also under torchrun. Networks are narrow: the same layers and names at a thousandth of the cost.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

import model.architecture
import model.training.learner
from model.data import Dataset
from model.train import Trainer
from model.training.distributed import join_world
from model.training.recipe import Recipe

RECIPE = replace(
    Recipe(),
    phases=((8, 2), (16, 1)),
    batch_size=16,
    learning_rate=0.005,  # larger steps make rounding errors grow too fast to compare runs
    ema_decay=0.9,
    crop_padding=2,
    cutout=4,
    cutmix=0.5,
    hold_out=16,
)

# Changes to RECIPE that make a network overfit the toy dataset.
OVERFITTING = {
    "learning_rate": 0.1,
    "label_smoothing": 0.0,
    "crop_padding": 0,
    "flip": False,
    "cutout": 0,
    "hold_out": 0,
}


def toy_dataset(size: int = 16) -> Dataset:
    """Make 64 pictures of noise with a class each: nothing to understand, all to be learnt by heart."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 3, size, size), generator=generator, dtype=torch.uint8)
    return Dataset("toy", "train", images, torch.arange(64) % 4, ("ant", "bee", "cat", "dog"))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--seconds-a-step", type=float, default=0.0)
    parser.add_argument("--batch-size", type=int, default=RECIPE.batch_size)
    arguments = parser.parse_args()
    model.architecture.STAGE_WIDTHS = (16, 16, 32, 32)
    model.training.learner.has_fast_bfloat16 = lambda _device: False  # the same numbers on every processor
    torch.set_num_threads(1)

    def show(step: int, steps: int, _now: dict[str, float]) -> None:
        sys.stdout.write(f"{step} {steps}\n")
        sys.stdout.flush()
        time.sleep(arguments.seconds_a_step)

    with join_world(torch.device("cpu")) as (world, device):
        trainer = Trainer(
            replace(RECIPE, batch_size=arguments.batch_size),
            toy_dataset(),
            arguments.out,
            device=device,
            world=world,
            progress=show if world.is_main else None,
            progress_every_s=0.0,
            save_every_s=0.0,
        )
        trainer.run()


if __name__ == "__main__":
    sys.exit(main())
