"""`resnet train`: make a checkpoint."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.data_flags import add_data, image_size
from app.telemetry import set_up_logging
from model.recipe import PRESETS, Recipe, parse_phases

if TYPE_CHECKING:
    from model.data import Dataset

log = logging.getLogger(__name__)


def _preset_values(name: str) -> str:
    return ", ".join(f"{preset} {getattr(recipe, name)}" for preset, recipe in PRESETS.items())


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; what is not given comes from the preset."""
    add_data(parser)
    parser.add_argument("--download", action="store_true", help="fetch CIFAR if it is not there")
    parser.add_argument(
        "--image-size",
        type=image_size,
        default=32,
        help="side a folder's pictures are brought to, pixels [%(default)s]",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/resnet18"), help="folder of the run [%(default)s]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N [%(default)s]")
    parser.add_argument("--preset", choices=sorted(PRESETS), help="recipe to start from [standard on CUDA, else cpu]")
    parser.add_argument("--arch", help=f"network [{_preset_values('arch')}]")
    parser.add_argument("--epochs", type=int, help="train so many epochs at full size instead of the preset's phases")
    parser.add_argument("--phases", type=parse_phases, help="SIZE:EPOCHS,... in pixels and epochs, such as 16:10,32:2")
    parser.add_argument("--batch-size", type=int, help=f"images a step [{_preset_values('batch_size')}]")
    parser.add_argument("--learning-rate", type=float, help=f"peak of the schedule [{_preset_values('learning_rate')}]")
    parser.add_argument("--weight-decay", type=float, help=f"[{_preset_values('weight_decay')}]")
    parser.add_argument("--label-smoothing", type=float, help=f"[{_preset_values('label_smoothing')}]")
    parser.add_argument(
        "--cutout", type=int, help=f"side of the blacked-out square, pixels [{_preset_values('cutout')}]"
    )
    parser.add_argument("--hold-out", type=int, help=f"images kept out of training [{_preset_values('hold_out')}]")
    parser.add_argument("--temperature", type=float, help="use this one instead of fitting it on the held-out images")
    parser.add_argument("--init-from", type=Path, help="checkpoint to start from, instead of fresh weights")
    parser.add_argument("--seed", type=int, help=f"[{_preset_values('seed')}]")


def build_recipe(arguments: argparse.Namespace, default_preset: str, dataset: Dataset) -> Recipe:
    """Fit the preset to the training set; what was given on the command line stays as it was given."""
    given: dict[str, Any] = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name in Recipe.__dataclass_fields__
    }
    if arguments.epochs is not None:
        given["phases"] = ((arguments.image_size, arguments.epochs),)
    preset = PRESETS[arguments.preset or default_preset]
    recipe = preset.for_data(arguments.image_size, len(dataset), len(dataset.classes), given)
    for name in Recipe.__dataclass_fields__:
        if name not in given and getattr(recipe, name) != getattr(preset, name):
            log.info(
                "%s %s instead of %s, to suit the training set", name, getattr(recipe, name), getattr(preset, name)
            )
    return recipe


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on with the run in --out, and print where the checkpoint is."""
    set_up_logging("info", "text")
    from tqdm import tqdm

    from model import checkpoint
    from model.data import DataError
    from model.datasets import load_dataset
    from model.learner import TrainingError
    from model.train import Trainer, pick_device

    device = pick_device(arguments.device)
    try:
        dataset = load_dataset(
            arguments.data,
            arguments.root,
            train=True,
            download=arguments.download,
            image_size=arguments.image_size,
            on_bad_image=arguments.on_bad_image,
        )
        recipe = build_recipe(arguments, "standard" if device.type == "cuda" else "cpu", dataset)
        with tqdm(unit="step", disable=not sys.stderr.isatty()) as bar:

            def show(step: int, steps: int, now: dict[str, float]) -> None:
                bar.total = steps
                bar.set_postfix({name: f"{value:.3g}" for name, value in now.items()}, refresh=False)
                bar.update(step - bar.n)

            trainer = Trainer(
                recipe,
                dataset,
                arguments.out,
                device=device,
                temperature=arguments.temperature,
                init_from=checkpoint.load(arguments.init_from) if arguments.init_from else None,
                progress=show,
            )
            path = trainer.run()
    except (DataError, TrainingError, ValueError) as error:
        print(f"resnet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the last whole epoch in %s", arguments.out)
        return 130
    print(path)
    return 0
