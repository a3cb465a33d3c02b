"""A checkpoint as an OpenVINO model, in a process of its own, so that the one that serves it needs no torch.

    python -m model.convert CHECKPOINT SHA256 PRECISION THREADS ANSWER WEIGHTS

The checkpoint is verified, with SHA256 (hex, or "") as the one expected. PRECISION is float32, bfloat16, int8, or auto
for the better one of the first two here. ANSWER and WEIGHTS are open files, by number. WEIGHTS gets the model's
weights. ANSWER gets a line of JSON and, unless it says what is wrong, the self-test's images and probabilities as .npy
and the model as XML:

    {"sha256": ..., "metadata": ..., "precision": ..., "floats": the precision of what is left in floats}
    {"refused": why the checkpoint cannot be used}        {"failed": the trace of any other error}

Standard input is held open by whoever waits for the answer: when it ends, this process does.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import BinaryIO

import numpy as np
import openvino
import torch

from model import checkpoint
from model.checkpoint import Checkpoint, CheckpointError
from model.openvino_graph import model_of
from model.precision import floats_of


def convert(source: Checkpoint, precision: str, threads: int, weights: BinaryIO, answer: BinaryIO) -> None:
    """Write the answer of a checkpoint that is well, and the weights. Raises what the runtimes raise."""
    floats = floats_of(precision, torch.device("cpu"))
    precision = floats if precision == "auto" else precision
    facts = source.facts
    metadata = facts.metadata.model_dump(mode="json")
    _write_line(answer, {"sha256": facts.sha256, "metadata": metadata, "precision": precision, "floats": floats})
    np.save(answer, facts.self_test_images, allow_pickle=False)
    np.save(answer, facts.self_test_probabilities, allow_pickle=False)
    with tempfile.TemporaryDirectory() as folder:  # OpenVINO wants a name that ends in .xml
        graph = Path(folder) / "model.xml"
        openvino.serialize(model_of(source, precision, threads), graph, f"/dev/fd/{weights.fileno()}")
        answer.write(graph.read_bytes())


def _write_line(answer: BinaryIO, fields: dict[str, object]) -> None:
    answer.write(json.dumps(fields).encode() + b"\n")


def _end_with_standard_input() -> None:
    os.read(0, 1)
    os._exit(1)


def main() -> None:
    """Convert as the command line says."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    path, sha256, precision, threads, *files = sys.argv[1:]
    answer, weights = (os.fdopen(int(file), "wb") for file in files)
    with answer, weights:
        try:
            source = checkpoint.load(Path(path), sha256 or None)
            convert(source, precision, int(threads), weights, answer)
        except CheckpointError as error:
            _write_line(answer, {"refused": str(error)})
        except Exception:
            answer.seek(0)
            answer.truncate()
            _write_line(answer, {"failed": traceback.format_exc()})
    os._exit(0)  # an ordinary end takes torch a while


if __name__ == "__main__":
    main()
