"""The `resnet` command."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from importlib import import_module

from app.commands.endings import CommandError, terminate, word_and_status
from app.early_signals import handle_early_signals
from app.release import release_and_revision

# Modules of app/commands, imported once SIGTERM is obeyed: that takes a tenth of a second and more.
COMMANDS = {
    "serve": "serve a checkpoint over HTTP",
    "predict": "classify image files, without a server",
    "train": "train a checkpoint",
    "evaluate": "measure accuracy and calibration of a checkpoint or of a running service",
    "bench": "measure the engine beside other ways to compute the same",
    "reload": "let a running service load its checkpoint file again, without a gap",
    "healthcheck": "exit 0 if a service is ready",
}

# What only training, evaluation and a GPU need: tools/requirements.py.
FOR_TRAINING_AND_GPUS = {"torch", "torchvision", "tqdm"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="resnet", description="Train a ResNet and serve it.")
    parser.add_argument("--version", action="version", version=f"resnet {release_and_revision()}")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in COMMANDS.items():
        module = import_module(f"app.commands.{name}")
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main() -> None:
    """Run a subcommand and exit with its code, 130 if Ctrl-C ended it, 143 if SIGTERM did."""
    _open_standard_files()
    if sys.argv[1:2] == ["serve"]:
        handle_early_signals()
    elif not _ends_by_default():
        signal.signal(signal.SIGTERM, terminate)  # which a container's first process would ignore by default
    _show_all_names()
    status = 0
    try:
        arguments = build_parser().parse_args()
        status = arguments.run(arguments)
        sys.stdout.flush()  # a reader that has gone is found out here, not at the exit, of which Python would complain
        sys.exit(status)
    except KeyboardInterrupt as error:
        word, status = word_and_status(error)
        sys.stderr.write(f"resnet: {word}\n")
        sys.exit(status)
    except BrokenPipeError:  # whoever read has read enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else what is buffered fails again at the exit
        sys.exit(status or 128 + signal.SIGPIPE)
    except ModuleNotFoundError as error:
        if error.name not in FOR_TRAINING_AND_GPUS:
            raise
        packages = " ".join(sorted(FOR_TRAINING_AND_GPUS))
        raise CommandError(f"this needs {error.name}, which is not installed here: pip install {packages}") from None


def _open_standard_files() -> None:
    """Open /dev/null in place of standard files that are closed: else a port or a client would get their numbers.

    What is written there, by a library that complains, would go to that client, and an event loop refuses to end.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def _ends_by_default() -> bool:
    """Return whether SIGTERM keeps its default action: in one of several processes that torchrun started.

    It ends such a one also while it waits within NCCL for a process that has failed; a handler in Python would have to
    wait for that, too, as the one does that a run has (`_stopping_gently`). A container's first process would ignore
    the signal.
    """
    size = os.environ.get("WORLD_SIZE", "")
    return os.getpid() != 1 and size.isdecimal() and int(size) > 1


def _show_all_names() -> None:
    """Let what the terminal has no letters for be printed as escapes: names of classes and files hold anything."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    main()
