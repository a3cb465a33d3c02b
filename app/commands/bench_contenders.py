"""The ways to compute the same probabilities that `resnet bench engine` compares with the service's own engine.

Each is a function of uint8 (N, 3, S, S) to float32 (N, classes), set up as its makers advise. "OpenVINO float32" and
so on are the service's own graph and backend in each precision, "OpenVINO converted" is what OpenVINO makes of the
network by itself.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from app.backends.backend import Backend
from app.backends.choice import open_backend
from app.backends.cuda_backend import open_cuda_backend
from app.backends.mnn_network import MnnModel, MnnNetwork
from app.engine import CheckpointEngine
from app.engine_errors import EngineUnavailable
from app.settings import Settings
from model.checkpoint import Checkpoint
from model.hardware.cudnn import cudnn_switched
from model.runtimes.batch_norm_folding import fold_batch_norm
from model.transforms import normalise

Run = Callable[[NDArray[np.uint8]], NDArray[np.float32]]

# torch compiles each batch size by itself: more of them than any measurement has.
MAX_COMPILATIONS = 256


class ContenderModule(nn.Module):
    """Uint8 images to probabilities: what every contender computes."""

    def __init__(self, source: Checkpoint, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calibration = source.metadata.calibration
        self.register_buffer("mean", torch.tensor(source.metadata.mean))
        self.register_buffer("std", torch.tensor(source.metadata.std))

    def forward(self, images: Tensor) -> Tensor:
        """Map uint8 (N, 3, S, S) to probabilities (N, classes)."""
        mean, std = self.get_buffer("mean").float(), self.get_buffer("std").float()
        inputs = normalise(images, mean, std).to(next(self.network.parameters()).dtype)
        return self.calibration.probabilities(self.network(inputs).float())


def contenders(
    source: Checkpoint, settings: Settings, device: str, backend: Backend | None = None
) -> dict[str, Callable[[], Run]]:
    """Return by name the function that sets each contender up.

    "engine" is the service's own, with `backend` if that has been opened already, else with the one of `settings`.
    """

    def eager(dtype: torch.dtype, *, channels_last: bool, folded: bool) -> Callable[[], Run]:
        def make() -> Run:
            network = fold_batch_norm(source.network()) if folded else source.network()
            layout = torch.channels_last if channels_last else torch.contiguous_format
            network = network.to(device, dtype, memory_format=layout)  # type: ignore[call-overload]
            return _torch_run(ContenderModule(source, network).to(device), device)

        return make

    def ours(**changes: str) -> Callable[[], Run]:
        return lambda: CheckpointEngine(source, open_backend(source, settings.model_copy(update=changes))).run

    made: dict[str, Callable[[], Run]] = {
        "engine": (lambda: CheckpointEngine(source, backend).run) if backend else ours(),
        "eager float32": eager(torch.float32, channels_last=False, folded=False),
        "eager float32 channels-last": eager(torch.float32, channels_last=True, folded=False),
        "eager bfloat16 channels-last": eager(torch.bfloat16, channels_last=True, folded=False),
        "folded float32": eager(torch.float32, channels_last=True, folded=True),
        "torch.compile float32": lambda: _compiled(source, torch.float32, device),
        "torch.compile bfloat16": lambda: _compiled(source, torch.bfloat16, device),
    }
    if device == "cpu":
        if find_spec("openvino"):
            for precision in ("float32", "bfloat16", "int8"):
                made[f"OpenVINO {precision}"] = ours(runtime="openvino", precision=precision)
            made["OpenVINO converted"] = lambda: _openvino_converted(source, settings.threads)
        if find_spec("MNN"):
            made["MNN float32"] = lambda: _mnn(source, settings.threads)
        if find_spec("onnxruntime") and find_spec("onnx"):
            made["ONNX Runtime float32"] = lambda: _onnx_runtime(source, settings.threads)
    else:
        for precision in ("float32", "bfloat16", "float16"):
            made[f"CUDA graphs {precision}"] = partial(_cuda_graphs, source, settings, device, precision)
        # torch's own way to CUDA graphs.
        reduced = partial(_compiled, source, torch.bfloat16, device, mode="reduce-overhead")
        made["torch.compile bfloat16 reduce-overhead"] = reduced
    return made


def engine_is(backend: Backend) -> str:
    """Name the contender that computes just as "engine" does: the two differ by what the measurement is unsure of.

    With MNN that holds for two images or more.
    """
    runtimes = {"openvino": "OpenVINO", "mnn": "MNN", "torch": "folded" if backend.device == "cpu" else "CUDA graphs"}
    return f"{runtimes[backend.runtime]} {backend.dtype}"


def _cuda_graphs(source: Checkpoint, settings: Settings, device: str, precision: str) -> Run:
    """Set up cuda_backend.py; what it falls back to is not measured under its name."""
    backend = open_cuda_backend(source, device, precision, settings.threads)
    engine = CheckpointEngine(source, backend)

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities = engine.run(images)
        if backend.mode == "eager":
            raise EngineUnavailable("no CUDA graph reproduces the eager network here; the log says why")
        return probabilities

    return run


def _torch_run(module: Callable[[Tensor], Tensor], device: str) -> Run:
    """Return what runs a module as the service runs its engine: float32 is no TF32, and cuDNN searches for the best."""

    @torch.inference_mode()
    @cudnn_switched("benchmark", True)
    @cudnn_switched("allow_tf32", False)
    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = module(torch.from_numpy(images).to(device)).cpu().numpy()
        return probabilities

    return run


def _compiled(source: Checkpoint, dtype: torch.dtype, device: str, mode: str | None = None) -> Run:
    # torch counts compilations of the same code, whichever network it belongs to, and beyond 8 runs it as it is.
    torch._dynamo.config.recompile_limit = MAX_COMPILATIONS
    network = fold_batch_norm(source.network()).to(device, dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return _torch_run(torch.compile(ContenderModule(source, network).to(device), dynamic=False, mode=mode), device)


def _mnn(source: Checkpoint, threads: int) -> Run:
    """Set up MNN for every batch size; the service's engine leaves a single image to OpenVINO."""
    network, calibration = MnnNetwork(MnnModel(source), threads), source.metadata.calibration
    return lambda images: calibration.probabilities_numpy(network.logits(images))


def _traceable(source: Checkpoint) -> tuple[ContenderModule, Tensor]:
    """Return what a converter follows, batch norm folded, and an example of its images, uint8 (2, 3, S, S)."""
    size = source.metadata.input_size
    return ContenderModule(source, fold_batch_norm(source.network())).eval(), torch.zeros(
        2, 3, size, size, dtype=torch.uint8
    )


def _openvino_converted(source: Checkpoint, threads: int) -> Run:
    """Set up the network as OpenVINO traces it, in the precision that it takes by itself on this processor."""
    import openvino

    module, example = _traceable(source)
    model = openvino.convert_model(module, example_input=example, input=[-1, *example.shape[1:]])
    compiled = openvino.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads})
    return lambda images: compiled(images)[0].copy()


def _onnx_runtime(source: Checkpoint, threads: int) -> Run:
    import onnxruntime

    file = io.BytesIO()
    module, example = _traceable(source)
    axes = {"images": {0: "n"}, "probabilities": {0: "n"}}
    names = {"input_names": ["images"], "output_names": ["probabilities"]}
    torch.onnx.export(module, (example,), file, dynamo=False, dynamic_axes=axes, opset_version=17, **names)  # type: ignore[arg-type]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(images: NDArray[np.uint8]) -> NDArray[np.float32]:
        probabilities: NDArray[np.float32] = session.run(None, {"images": images})[0]
        return probabilities

    return run


@contextmanager
def explained() -> Iterator[None]:
    """Turn a contender's errors into EngineUnavailable, with a message of one line."""
    try:
        yield
    except EngineUnavailable:
        raise
    except Exception as error:
        raise EngineUnavailable(f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from None
