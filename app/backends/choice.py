"""Which runtime computes a checkpoint, on which device and in which precision: the whole decision in one place.

Where the settings leave the runtime open:

    device cuda, or auto with a GPU        torch
    device cpu, or auto without a GPU      OpenVINO, with MNN for batches where that is faster; torch without OpenVINO

torch takes two seconds to import and hundreds of megabytes for good, and OpenVINO is of no use to a GPU: each is
imported where it has been chosen, and torch also where a GPU is in sight, for only torch can tell whether it is usable.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

from app.backends.backend import Backend
from app.engine_errors import EngineUnavailable
from app.settings import Settings
from model.checkpoint import Checkpoint

log = logging.getLogger(__name__)

# Where WSL puts the library of NVIDIA's driver, if there is one.
WSL_DRIVERS = Path("/usr/lib/wsl/lib")


def open_backend(source: Checkpoint, settings: Settings) -> Backend:
    """Put a checkpoint's network where the settings say.

    Raises EngineUnavailable for what this machine or the runtime cannot do, and what the runtime raises.
    """
    runtime, device, precision = resolve(settings)
    if runtime != "torch":
        return _open_without_torch(source, settings, runtime, precision)
    if device == "cpu":
        from app.backends.torch_backend import TorchBackend

        return TorchBackend(source, device, precision, settings.engine_threads)
    from app.backends.cuda_precision import open_on_cuda

    return open_on_cuda(source, settings, device, precision)


def resolve(settings: Settings) -> tuple[str, str, str]:
    """Return runtime, device and precision, with what "auto" means on this machine.

    Where the settings leave the runtime open, "openvino" may yet become "mnn", by measurement.
    Raises EngineUnavailable for what is not installed, a GPU that torch does not have, and what cannot go together.
    """
    device = _device(settings)
    runtime: str = settings.runtime
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and _is_installed("openvino") else "torch"
    if device != "cpu":
        if runtime != "torch":
            raise EngineUnavailable(f"runtime {runtime} needs device cpu")
        from app.backends.cuda_device import require_gpu

        require_gpu(device)
    elif runtime != "torch" and not _is_installed("openvino"):
        raise EngineUnavailable(f"runtime {runtime} needs OpenVINO, which is not installed here: pip install openvino")
    if settings.precision == "auto":
        return runtime, device, _fast_float(runtime, device)
    _require_precision(settings.precision, runtime, device)
    return runtime, device, settings.precision


def may_need_torch(settings: Settings) -> bool:
    """Whether torch may be what computes."""
    if settings.runtime == "torch" or not _is_installed("openvino"):
        return True
    return _gpu_in_sight() and _is_installed("torch") if settings.device == "auto" else settings.device != "cpu"


def _device(settings: Settings) -> str:
    """Return "cpu" or the name of a CUDA device. Raises EngineUnavailable if torch is needed and not installed.

    Warns of a GPU that cannot be used: a service on the CPU looks well, and is slow.
    """
    if not may_need_torch(settings):
        if settings.device == "auto" and _gpu_in_sight():
            log.warning("there is a GPU, but PyTorch is not installed here: serving on the CPU")
        return "cpu"
    if not _is_installed("torch"):
        if settings.runtime != "torch" and settings.device in {"auto", "cpu"}:
            raise EngineUnavailable("neither OpenVINO nor PyTorch is installed here: pip install openvino")
        instead = "" if settings.runtime == "torch" else "; or device cpu"
        raise EngineUnavailable(f"PyTorch is not installed here: pip install torch torchvision tqdm{instead}")
    if settings.device != "auto":
        return settings.device
    from app.backends.cuda_device import is_usable, why_no_cuda

    if is_usable():
        return "cuda"
    if _gpu_in_sight():
        log.warning("serving on the CPU, but there is an NVIDIA GPU that torch cannot use: %s", why_no_cuda())
    return "cpu"


def _gpu_in_sight() -> bool:
    """Whether there is a device file of a GPU that torch might use: NVIDIA, Tegra, or NVIDIA's in WSL."""
    if any(file for name in ("nvidia*", "nvhost*", "nvmap") for file in Path("/dev").glob(name)):
        return True
    return Path("/dev/dxg").exists() and any(WSL_DRIVERS.glob("libcuda.so*"))  # WSL has the file for every maker's GPU


def _is_installed(package: str) -> bool:
    return find_spec(package) is not None


def _fast_float(runtime: str, device: str) -> str:
    """Return the faster float there, the first to be tried on CUDA (cuda_precision.py)."""
    if runtime == "mnn":
        return "float32"  # it has no other
    if runtime == "openvino":
        from app.backends import openvino_backend

        return openvino_backend.fast_float()
    from app.backends import torch_backend

    return torch_backend.fast_float(device)


def _require_precision(precision: str, runtime: str, device: str) -> None:
    """Raise EngineUnavailable unless the runtime has the precision on that device."""
    if precision == "float16" and device == "cpu":
        raise EngineUnavailable("precision float16 needs device cuda")
    if precision == "int8" and runtime == "torch":
        raise EngineUnavailable("precision int8 needs device cpu and OpenVINO")
    if precision != "float32" and runtime == "mnn":
        raise EngineUnavailable("runtime mnn computes in float32: set precision float32")


def _open_without_torch(source: Checkpoint, settings: Settings, runtime: str, precision: str) -> Backend:
    """Open OpenVINO or MNN, and of the two the faster one where the settings leave that open."""
    from app.backends.openvino_backend import open_openvino

    if runtime == "mnn":
        from app.backends.mnn_backend import open_mnn

        return open_mnn(source, settings)
    is_open = settings.runtime == "auto" and not settings.split_batches
    if is_open and precision == "float32" and _is_installed("MNN"):
        from app.backends.mnn_backend import open_mnn_if_faster

        faster = open_mnn_if_faster(source, settings)
        if faster is not None:
            return faster
    return open_openvino(source, settings, precision)
