"""Accuracy and calibration of what the service answers: the whole test set over HTTP, each image as a PNG.

python -m benchmarks.served_accuracy --root FOLDER [--precision int8]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.records import RECORDS
from tests.process import service_process


def main() -> int:
    """Start the service, let `resnet evaluate` ask it, and return that command's exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder of cifar-10-batches-py")
    parser.add_argument("--precision", choices=("auto", "int8"), default="auto", help="of the service [%(default)s]")
    arguments = parser.parse_args()
    suffix = "" if arguments.precision == "auto" else f"_{arguments.precision}"
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(Path(folder) / "serve.log", device="cpu", precision=arguments.precision) as service,
    ):
        service.wait_ready()
        command = [sys.executable, "-m", "app.cli", "evaluate", "--data", "cifar10", "--root", str(arguments.root)]
        command += ["--url", service.url, "--json", str(RECORDS / f"evaluate_service{suffix}.json")]
        return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
