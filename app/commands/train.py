"""`resnet train`: make a checkpoint."""

from __future__ import annotations

import argparse
import errno
import logging
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from app.commands.argument_types import whole
from app.commands.data_flags import add_data, check_out, named_path
from app.commands.endings import ResultLines, word_and_status
from app.commands.fitted_recipe import build_recipe, check_flags, check_folder, check_run, choose_preset
from app.commands.labelled_data import load_split
from app.commands.progress import ProgressBar, ProgressLines
from app.commands.recipe_flags import add_recipe
from app.commands.settings_flags import add_settings, read_settings
from app.commands.train_report import report
from app.logs import set_up_logging
from model.transforms import MAX_SIDE, MIN_SIDE

if TYPE_CHECKING:
    import torch

    from model.train import Trainer
    from model.training.distributed import World
    from model.training.progress import OnEpoch


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.epilog = (
        "Example, for a folder with a folder of pictures for each class: "
        "resnet train --data folder:pictures --init-from weights/resnet18-cifar10.safetensors --out runs/mine"
    )
    add_data(parser)
    parser.add_argument(
        "--image-size",
        type=whole(MIN_SIDE, MAX_SIDE),
        default=32,
        help="side a folder's pictures are brought to, pixels [%(default)s]",
    )
    parser.add_argument("--out", type=named_path, default=Path("runs/resnet18"), help="folder of the run [%(default)s]")
    add_settings(parser, only={"device"})
    add_recipe(parser)
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run the network through torch.compile [on one CUDA device, where it works]",
    )
    parser.add_argument(
        "--synthetic-self-test",
        action="store_true",
        help="keep pictures out of the checkpoint: it tests itself by made images instead of up to sixteen of them",
    )
    parser.add_argument(
        "--finish",
        action="store_true",
        help="train no further: make a checkpoint of what the run in --out has saved, by its own command",
    )
    parser.add_argument("--tensorboard", action="store_true", help="also write event files to OUT/tensorboard")
    parser.add_argument("--no-report", action="store_true", help="do not measure on the test set and draw at the end")


def run(arguments: argparse.Namespace) -> int:
    """Train, or resume the run in --out, print the checkpoint's path, and report on it.

    The exit status is 128 + the signal's number if a signal stopped the run. Raises CommandError for a setting that is
    wrong, and BrokenPipeError when all is done, the report too, if nobody has read the printed lines.
    """
    from model.extras import MissingExtra
    from model.hardware.device import lacks_memory, limit_threads, pick_device
    from model.training.distributed import join_world
    from model.training.errors import Stopped, TrainingError

    settings = read_settings(arguments)
    signals: list[int] = []
    lines, status = ResultLines(), 0
    try:
        check_out(arguments.out, arguments.data)  # before hours of reading and training
        limit_threads()
        with join_world(pick_device(settings.device)) as (world, device):
            set_up_logging("info" if world.is_main else "warning", "text")
            path = _train(arguments, device, world, signals)
            if world.is_main:
                lines.print(str(path))
                if not arguments.no_report:
                    status = _report(arguments, path, device, signals, lines)
    except Stopped as stopped:
        print(f"resnet: {stopped}", file=sys.stderr)
        return 128 + (signals[0] if signals else signal.SIGTERM)  # which went to another process
    except (MissingExtra, TrainingError, ValueError, OSError) as error:  # all that is refused is a ValueError
        full = isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT}
        note = ": what was saved before is kept, and with more room the same command goes on" if full else ""
        print(f"resnet: error: {error}{note}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        less = "take a smaller --batch-size or --image-size, or fewer pictures"
        print(f"resnet: error: out of memory: {less}", file=sys.stderr)
        return 1
    if lines.gone is not None and not status:
        raise lines.gone
    return status


def _report(
    arguments: argparse.Namespace, path: Path, device: torch.device, signals: list[int], lines: ResultLines
) -> int:
    """Report on the finished checkpoint and return the exit status, unless `signals` have asked to stop."""
    word, status = "stopped", 128 + (signals[0] if signals else 0)
    try:
        if not signals:
            report(arguments, path, device, lines)
            return 0
    except KeyboardInterrupt as error:
        word, status = word_and_status(error)
    print(f"resnet: {word}: the checkpoint is finished, its report is not", file=sys.stderr)
    return status


def _train(arguments: argparse.Namespace, device: torch.device, world: World, signals: list[int]) -> Path:
    """Train and return the checkpoint's path; append signals that ask to stop to `signals`."""
    from tqdm.contrib.logging import logging_redirect_tqdm

    from model import checkpoint
    from model.image_folder.notices import tell_of_held_out_pictures
    from model.train import Trainer
    from model.training.run_folder import RunFolder
    from model.training.tensorboard_log import TensorBoardLog

    began = time.monotonic()
    log_epoch: OnEpoch | None = None
    folder = RunFolder(arguments.out)  # looked at before all pictures are read
    folder.check_ours()
    if arguments.finish:
        folder.require_state()
    elif not folder.state.exists():  # else it may be that nothing is left to write
        folder.check_writable()
    with ExitStack() as stack:
        if arguments.tensorboard and world.is_main:
            log_epoch = stack.enter_context(closing(TensorBoardLog(arguments.out / "tensorboard")))
        init_from = checkpoint.load(arguments.init_from) if arguments.init_from else None
        preset_name = choose_preset(arguments, device)
        check_flags(arguments, preset_name, init_from, world.size)
        kept = check_run(arguments, preset_name, init_from, world.size)
        check_folder(arguments, preset_name, init_from, device)
        with _warnings_of_one(world):
            dataset = load_split(arguments, split="train")
            recipe = build_recipe(arguments, preset_name, dataset, init_from, processes=world.size, kept=kept)
            if world.is_main:
                tell_of_held_out_pictures(dataset, recipe.hold_out, fitted=arguments.temperature is None)
        data_loading_s = time.monotonic() - began
        shown: ProgressBar | ProgressLines = ProgressLines(recipe.epochs)
        if world.is_main and sys.stderr.isatty():
            stack.enter_context(logging_redirect_tqdm())  # log lines go above the bar, not into it
            shown = ProgressBar()
        stack.enter_context(closing(shown))

        trainer = Trainer(
            recipe,
            dataset,
            arguments.out,
            device=device,
            temperature=arguments.temperature,
            consume=True,
            init_from=init_from,
            world=world,
            compiled=_is_compiled(arguments, device, world),
            synthetic_self_test=arguments.synthetic_self_test,
            preset=preset_name,
            progress=shown.show_step if world.is_main else None,
            progress_every_s=shown.every_s,
            on_epoch=log_epoch,
        )
        stack.enter_context(_stopping_gently(trainer, signals))
        path = trainer.run(finish=arguments.finish)
    if world.is_main and not trainer.was_finished:
        seconds = {
            "data_loading": data_loading_s,
            "compile": trainer.compile_seconds,
            "training": trainer.training_seconds,  # of all attempts; the total is of this process alone
            "total": time.monotonic() - began,
        }
        trainer.folder.write_json("timing.json", {name: round(value, 2) for name, value in seconds.items()})
    return path


def _is_compiled(arguments: argparse.Namespace, device: torch.device, world: World) -> bool:
    """Return whether the network is run through torch.compile: on one CUDA device, unless a flag says otherwise."""
    if arguments.finish:
        return False
    return arguments.compile if arguments.compile is not None else device.type == "cuda" and world.size == 1


@contextmanager
def _warnings_of_one(world: World) -> Iterator[None]:
    """Let only the main process warn of pictures while the block runs: all processes read the same ones."""
    if not world.is_main:
        logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _stopping_gently(trainer: Trainer, signals: list[int]) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM save the state and end the run, a second one end it at once.

    Where there is nothing to save, neither waits: when one process alone compiles, or calibrates what the last epoch
    has left. One of several, for which the others would wait, goes on to its next step or to the checkpoint.
    """

    def stop(number: int, _frame: object) -> None:
        for one, handler in before.items():
            signal.signal(one, handler)
        if not trainer.stops_when_asked:
            signal.raise_signal(number)
            return
        signals.append(number)
        trainer.request_stop()
        what = "saving the state after this step"
        if not trainer.in_epochs:
            what = "the other processes wait for this one: it stops after its next step, or with the checkpoint"
        print(f"resnet: {what}; once more stops at once", file=sys.stderr)

    before = {one: signal.signal(one, stop) for one in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
