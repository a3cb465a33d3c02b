"""A checkpoint's network in the runtime, on the device and in the precision that the settings ask for.

This room and the backends that it opens, but for app/mnn_backend.py, bring torch with them.
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
from model.precision import has_fast_bfloat16


def resolve(settings: Settings) -> tuple[str, str, str]:
    """Return runtime, device and precision, with what "auto" means on this machine."""
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    runtime: str = settings.runtime
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and find_spec("openvino") else "torch"
    return runtime, device, _precision(settings, runtime, device)


def _precision(settings: Settings, runtime: str, device: str) -> str:
    if settings.precision != "auto":
        return settings.precision
    if runtime != "torch" and device == "cpu" and find_spec("openvino"):
        from app.openvino_backend import precision_of  # it imports openvino, which a GPU does not need

        return precision_of(settings)
    return "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"


def open_backend(source: Checkpoint, settings: Settings) -> Backend:
    """Put a checkpoint's network where the settings say. Raises EngineUnavailable."""
    runtime, device, precision = resolve(settings)
    if runtime == "torch":
        if precision == "int8":
            raise EngineUnavailable("precision int8 needs device cpu and OpenVINO")
        opened = TorchBackend if torch.device(device).type == "cpu" else open_cuda_backend
        return opened(source, device, precision, settings.threads or available_cores())
    if device != "cpu":
        raise EngineUnavailable(f"runtime {runtime} needs device cpu")
    if not find_spec("openvino"):
        raise EngineUnavailable(f"runtime {runtime} needs OpenVINO, which is not installed here: pip install openvino")
    from app.mnn_backend import open_on_cpu

    return open_on_cpu(source, settings)
