"""A checkpoint's network in the runtime, on the device and in the precision that the settings ask for.

This room and the backends that it opens, but for mnn_backend.py, bring torch with them.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path

import torch

from app.backends.agreement import BOUND, spread
from app.backends.backend import Backend, EngineUnavailable
from app.backends.batch_sizes import ladder
from app.backends.cuda_backend import PIECE, CudaBackend, distinct, open_cuda_backend
from app.backends.torch_backend import TorchBackend
from app.memory import clear_error_frames
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.cores import available_cores
from model.precision import has_fast_bfloat16

log = logging.getLogger(__name__)

# What "auto" takes on CUDA in place of a precision whose answers move too much with the size of a batch. float16 is as
# fast as bfloat16 and rounds to an eighth of it; its smaller range is checked when a size is proven (cuda_backend.py).
FINER = {"bfloat16": "float16", "float16": "float32"}

# The oldest NVIDIA driver for each major version of the CUDA that torch was built with.
MIN_DRIVERS = {"12": "R525", "13": "R580"}

# So many pictures are compared in batches of each size: the worst of a few says little of the worst of all. They are
# the checkpoint's own and shifted ones, see `distinct`.
COMPARED = 256


def resolve(settings: Settings) -> tuple[str, str, str]:
    """Return runtime, device and precision, with what "auto" means on this machine.

    Raises EngineUnavailable for a GPU that torch does not have, or the runtime does not use.
    Warns of a GPU that cannot be used: a service on the CPU looks well, and is slow.
    """
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu" and _nvidia_in_sight():
            log.warning("serving on the CPU, but there is an NVIDIA GPU that torch cannot use: %s", _why_no_cuda())
    runtime: str = settings.runtime
    if runtime == "auto":
        runtime = "openvino" if device == "cpu" and find_spec("openvino") else "torch"
    if device != "cpu" and runtime != "torch":
        raise EngineUnavailable(f"runtime {runtime} needs device cpu")
    if device != "cpu":
        _require_gpu(device)
    return runtime, device, _precision(settings, runtime, device)


def _require_gpu(device: str) -> None:
    if not torch.cuda.is_available():
        raise EngineUnavailable(f"device {device} cannot be used: {_why_no_cuda()}")
    count, index = torch.cuda.device_count(), torch.device(device).index or 0
    if index >= count:
        raise EngineUnavailable(f"there is no device {device}: torch sees {count} of them")


def _nvidia_in_sight() -> bool:
    return any(Path("/dev").glob("nvidia*"))


def _why_no_cuda() -> str:
    """Return what torch says when it is made to try, and what driver its CUDA asks for."""
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        reason = "no reason is known"
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    needed = MIN_DRIVERS.get((torch.version.cuda or "").partition(".")[0])
    return f"{reason}; CUDA {torch.version.cuda} needs driver {needed} or newer" if needed else reason


def _precision(settings: Settings, runtime: str, device: str) -> str:
    if settings.precision != "auto":
        return settings.precision
    if runtime != "torch" and device == "cpu" and find_spec("openvino"):
        from app.backends.openvino_backend import precision_of  # it imports openvino, which a GPU does not need

        return precision_of(settings)
    return "bfloat16" if has_fast_bfloat16(torch.device(device)) else "float32"


def open_backend(source: Checkpoint, settings: Settings) -> Backend:
    """Put a checkpoint's network where the settings say. Raises EngineUnavailable."""
    runtime, device, precision = resolve(settings)
    if runtime == "torch":
        if precision == "int8":
            raise EngineUnavailable("precision int8 needs device cpu and OpenVINO")
        threads = settings.threads or available_cores()
        if torch.device(device).type == "cpu":
            if precision == "float16":
                raise EngineUnavailable("precision float16 needs device cuda")
            return TorchBackend(source, device, precision, threads)
        return _open_on_cuda(source, settings, device, precision, threads)
    if not find_spec("openvino"):
        raise EngineUnavailable(f"runtime {runtime} needs OpenVINO, which is not installed here: pip install openvino")
    from app.backends.mnn_backend import open_on_cpu

    return open_on_cpu(source, settings)


def _open_on_cuda(source: Checkpoint, settings: Settings, device: str, precision: str, threads: int) -> CudaBackend:
    """Open the network in a precision whose answers agree between batch sizes, if the settings leave it open."""
    while True:
        backend = open_cuda_backend(source, device, precision, threads)
        try:
            off = _spread(source, settings, backend)
        except BaseException as error:
            clear_error_frames(error)
            backend.close()
            raise
        finer = FINER.get(precision) if settings.precision == "auto" else None
        if off <= BOUND or finer is None:
            break
        backend.close()
        log.warning("not in %s but in %s: %s", precision, finer, _too_much(off))
        precision = finer
    if off > BOUND:
        log.warning("in %s %s", precision, _too_much(off))
    return backend


def _too_much(off: float) -> str:
    return f"probabilities move by {off:.4f} with the size of the batch, more than the promised {BOUND}"


def _spread(source: Checkpoint, settings: Settings, backend: CudaBackend) -> float:
    """Measure with the sizes that batches may have; all of them are to be run before ready in any case."""
    calibration = source.metadata.calibration
    sizes = settings.batch_sizes or ladder(min(PIECE, settings.max_queue_images))
    pictures = distinct(source.self_test_images.numpy(), COMPARED)
    return spread(
        lambda images: calibration.probabilities_numpy(backend.logits(images)),
        pictures,
        {min(size, PIECE) for size in sizes},
    )
