"""`resnet train`: make a checkpoint, let people watch, and leave a report in the run's folder."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.commands.evaluate import as_result, score_checkpoint
from app.telemetry import set_up_logging
from model.recipe import PRESETS, Recipe, parse_phases

if TYPE_CHECKING:
    import torch
    from tqdm import tqdm

log = logging.getLogger(__name__)


def _preset_values(name: str) -> str:
    return ", ".join(f"{preset} {getattr(recipe, name)}" for preset, recipe in PRESETS.items())


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; what is not given comes from the preset."""
    parser.add_argument("--data", choices=["cifar10"], default="cifar10", help="dataset [%(default)s]")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py [%(default)s]")
    parser.add_argument("--download", action="store_true", help="fetch the dataset if it is not there")
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
    parser.add_argument("--tensorboard", action="store_true", help="also write event files to OUT/tensorboard")
    parser.add_argument("--no-report", action="store_true", help="do not measure on the test set and draw at the end")
    parser.add_argument("--seed", type=int, help=f"[{_preset_values('seed')}]")


def build_recipe(arguments: argparse.Namespace, default_preset: str) -> Recipe:
    """Combine the preset with what was given on the command line."""
    given: dict[str, Any] = {
        name: value
        for name, value in vars(arguments).items()
        if value is not None and name in Recipe.__dataclass_fields__
    }
    if arguments.epochs is not None:
        given["phases"] = ((32, arguments.epochs),)
    return replace(PRESETS[arguments.preset or default_preset], **given)


class ProgressBar:
    """Steps, loss, accuracy and images/s on standard error, for a person who is watching."""

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None

    def show_step(self, step: int, steps: int, now: dict[str, float]) -> None:
        """Show that `step` of `steps` are done. The bar starts at the first one told: a resumed run's is not 0."""
        if self._bar is None:
            self._bar = self._open(step, steps)
        figures = f"loss={now['loss']:.3f}, accuracy={now['accuracy']:.1%}, images/s={now['images_per_s']:.0f}"
        self._bar.set_postfix_str(figures, refresh=False)
        self._bar.update(step - self._bar.n)

    @staticmethod
    def _open(step: int, steps: int) -> tqdm[Any]:
        from tqdm import tqdm

        # A terminal that does not know its size says 0 x 0, where tqdm would draw nothing.
        known = all(os.get_terminal_size(sys.stderr.fileno()))
        return tqdm(
            total=steps,
            initial=step,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} steps [{elapsed}<{remaining}{postfix}]",
            dynamic_ncols=known,
            ncols=None if known else 80,
            nrows=None if known else 24,
        )

    def show_epoch(self, line: dict[str, Any]) -> None:
        """Show that an epoch is done, as `metrics.jsonl` has it: its last few steps are not told one by one."""
        if self._bar is not None and self._bar.total is not None:
            steps = round(self._bar.total)
            self.show_step(steps * line["epoch"] // line["epochs"], steps, line)

    def close(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


def run(arguments: argparse.Namespace) -> int:
    """Train, or go on with the run in --out, print where the checkpoint is, and report on it."""
    set_up_logging("info", "text")
    from model.data import DataError
    from model.extras import MissingExtra
    from model.train import TrainingError, pick_device

    device = pick_device(arguments.device)
    try:
        path = _train(arguments, device)
        print(path, flush=True)
        if not arguments.no_report:
            _report(arguments, path, device)
    except (DataError, MissingExtra, TrainingError, ValueError) as error:
        print(f"resnet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        log.warning("stopped; the same command goes on from the last whole epoch in %s", arguments.out)
        return 130
    return 0


def _train(arguments: argparse.Namespace, device: torch.device) -> Path:
    """Run the training with what the person wants to watch, and return the checkpoint's path."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from model import checkpoint
    from model.data import load_cifar10
    from model.tensorboard_log import TensorBoardLog
    from model.train import Trainer

    recipe = build_recipe(arguments, "standard" if device.type == "cuda" else "cpu")
    watchers: list[Callable[[dict[str, Any]], None]] = []
    with ExitStack() as stack:
        if arguments.tensorboard:
            watchers.append(stack.enter_context(closing(TensorBoardLog(arguments.out / "tensorboard"))))
        dataset = load_cifar10(arguments.root, train=True, download=arguments.download)
        bar = None
        if sys.stderr.isatty():
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar, not into it
            bar = stack.enter_context(closing(ProgressBar()))
            watchers.append(bar.show_epoch)

        def on_epoch(line: dict[str, Any]) -> None:
            for watcher in watchers:
                watcher(line)

        trainer = Trainer(
            recipe,
            dataset,
            arguments.out,
            device=device,
            temperature=arguments.temperature,
            init_from=checkpoint.load(arguments.init_from) if arguments.init_from else None,
            progress=bar.show_step if bar else None,
            on_epoch=on_epoch,
        )
        return trainer.run()


def _report(arguments: argparse.Namespace, path: Path, device: torch.device) -> None:
    """Measure the finished checkpoint on the test set, once, and leave figures and pictures in the run's folder."""
    from model import checkpoint
    from model.data import DataError, load_cifar10
    from model.extras import MissingExtra
    from model.report import write_report

    dataset, probabilities = None, None
    try:
        dataset = load_cifar10(arguments.root, train=False)
    except DataError as error:
        print(f"resnet: no test set, so only the learning curves are drawn: {error}", file=sys.stderr)
    if dataset is not None:
        log.info("measuring on %d test images", len(dataset))
        source = checkpoint.load(path)
        scores, probabilities = score_checkpoint(source, dataset, device)
        result = as_result(source.metadata.name, source.version, "checkpoint", scores)
        data = (json.dumps(result, indent=1) + "\n").encode()
        checkpoint.write_atomically(arguments.out / "evaluation.json", data)
        print(f"test top-1 {scores.top1:.4f}, ece {scores.ece:.4f} (15 bins)")
    try:
        write_report(arguments.out, arguments.out / "metrics.jsonl", dataset, probabilities)
    except MissingExtra as error:
        print(f"resnet: no pictures: {error}", file=sys.stderr)
