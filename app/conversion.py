"""The network in OpenVINO without PyTorch in this process: another one converts the checkpoint, and ends.

PyTorch is what reads and rewrites a network; to compute it on a CPU takes OpenVINO alone. Here it would stay for as
long as the service lives, with hundreds of megabytes.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from typing import BinaryIO

import numpy as np
from openvino import Tensor

from app.children import module_command
from app.cores import available_cores
from app.engine import EngineUnavailable
from app.openvino_backend import OpenVinoBackend
from app.settings import Settings
from model.file_backed import FileBacked, file_with_room
from model.metadata import CheckpointError, Facts, Metadata
from model.openvino_core import core

# Stored weights of 16 bits become 32.
GROWTH = 2


def open_converted(settings: Settings) -> tuple[Facts, OpenVinoBackend]:
    """Verify the checkpoint and put its network where it computes.

    Raises CheckpointError, EngineUnavailable if the other process is ended, or what the runtime raises.
    """
    threads = settings.threads or available_cores()
    with tempfile.TemporaryFile() as answer, file_with_room(_size_of(settings) * GROWTH) as weights:
        _convert(settings, threads, answer, weights)
        answer.seek(0)
        said = json.loads(answer.readline())
        if "refused" in said:
            raise CheckpointError(said["refused"])
        if "failed" in said:
            raise RuntimeError(f"the checkpoint could not be converted\n{said['failed']}")
        images, probabilities = np.load(answer, allow_pickle=False), np.load(answer, allow_pickle=False)
        facts = Facts(said["sha256"], Metadata.model_validate(said["metadata"]), images, probabilities)
        constants = FileBacked(weights)
        model = core().read_model(answer.read(), Tensor(constants.values, shared_memory=True))
    return facts, OpenVinoBackend(model, said["precision"], said["floats"], threads, constants)


def _size_of(settings: Settings) -> int:
    try:
        return settings.weights.stat().st_size
    except OSError:  # the other process says so
        return 0


def _convert(settings: Settings, threads: int, answer: BinaryIO, weights: BinaryIO) -> None:
    """Let another process write what model/convert.py says. Raises EngineUnavailable if it does not get to the end."""
    files = (answer.fileno(), weights.fileno())
    command, environment = module_command(
        "model.convert",
        str(settings.weights),
        settings.weights_sha256 or "",
        settings.precision,
        str(threads),
        *map(str, files),
    )
    # A session of its own: signals of a terminal are for this process, with which it ends.
    with subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, pass_fds=files, env=environment, start_new_session=True
    ) as process:
        core()  # which takes a moment, too
        code = process.wait()
    if code:
        ending = f"signal {-code}; was there too little memory?" if code < 0 else f"exit code {code}"
        raise EngineUnavailable(f"the process that converts the checkpoint has ended with {ending}")
