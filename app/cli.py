"""The `resnet` command."""

from __future__ import annotations

import argparse
import sys

from app.commands import bench, evaluate, healthcheck, predict, reload, serve, train

COMMANDS = {
    "serve": (serve, "serve a checkpoint over HTTP"),
    "predict": (predict, "classify image files, without a server"),
    "train": (train, "train a checkpoint"),
    "evaluate": (evaluate, "measure accuracy and calibration of a checkpoint or of a running service"),
    "bench": (bench, "measure the engine beside other ways to compute the same"),
    "reload": (reload, "let a running service load its checkpoint file again, without a gap"),
    "healthcheck": (healthcheck, "exit 0 if a service is ready"),
}

# What only training, evaluation and a GPU need: tools/requirements.py.
FOR_TRAINING_AND_GPUS = {"torch", "torchvision", "tqdm"}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = argparse.ArgumentParser(prog="resnet", description="Train a ResNet and serve it.")
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=module.__doc__)
        module.add(subparser)
        subparser.set_defaults(run=module.run)
    return parser


def main() -> None:
    """Run a subcommand and exit with its code."""
    arguments = build_parser().parse_args()
    try:
        sys.exit(arguments.run(arguments))
    except ModuleNotFoundError as error:
        if error.name not in FOR_TRAINING_AND_GPUS:
            raise
        packages = " ".join(sorted(FOR_TRAINING_AND_GPUS))
        sys.exit(f"resnet: error: this needs {error.name}, which is not installed here: pip install {packages}")


if __name__ == "__main__":
    main()
