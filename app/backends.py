"""A checkpoint's network in the runtime, on the device and in the precision that the settings ask for.

This room and the backends that it opens, but for app/openvino_backend.py, bring torch with them.
"""

from __future__ import annotations

from importlib.util import find_spec

import torch

from app.cores import available_cores
from app.cuda_backend import open_cuda_backend
from app.engine import Backend, EngineUnavailable
from app.settings import Settings
from app.torch_backend import TorchBackend
from model.checkpoint import Checkpoint
from model.precision import floats_of


def resolve(settings: Settings) -> tuple[str, str, str]:
    """Return runtime, device and precision, with what "auto" means on this machine."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    precision: str = settings.precision
    if precision == "auto":
        precision = floats_of(precision, torch.device(device))
    runtime: str = settings.runtime
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and find_spec("openvino") else "torch"
    return runtime, device, precision


def open_backend(source: Checkpoint, settings: Settings) -> Backend:
    """Put a checkpoint's network where the settings say. Raises EngineUnavailable."""
    runtime, device, precision = resolve(settings)
    threads = settings.threads or available_cores()
    if runtime == "torch":
        if precision == "int8":
            raise EngineUnavailable("precision int8 needs device cpu and OpenVINO")
        opened = TorchBackend if torch.device(device).type == "cpu" else open_cuda_backend
        return opened(source, device, precision, threads)
    if device != "cpu":
        raise EngineUnavailable("runtime openvino needs device cpu")
    if not find_spec("openvino"):
        raise EngineUnavailable("runtime openvino is not installed here: pip install openvino")
    from app.openvino_backend import OpenVinoBackend  # it imports openvino, which a GPU does not need
    from model.openvino_graph import model_of

    floats = floats_of(precision, torch.device(device))
    return OpenVinoBackend(model_of(source, precision, threads), precision, floats, threads)
