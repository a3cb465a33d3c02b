"""What a CUDA graph would be recorded of, on a GPU that is not here."""

from types import SimpleNamespace

import pytest
import torch

from app.backends.torch_backend import TorchBackend
from model.resnet import resnet18, resnet50
from model.runtimes.fused_convolutions import CudnnKernels, FusedNetwork, PlainKernels
from tests.unseen_gpu import GPU, unseen_gpu


@pytest.fixture
def watch(monkeypatch):
    with unseen_gpu(monkeypatch) as watch:
        yield watch


@pytest.mark.parametrize("build", [resnet18, resnet50])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("kernels", [PlainKernels, CudnnKernels])
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
def test_nothing_is_copied_or_waited_for(build, stem, kernels, precision, watch, monkeypatch):
    monkeypatch.setattr("model.architecture.STAGE_WIDTHS", (16, 16, 32, 32))
    metadata = SimpleNamespace(mean=(0.5,) * 3, std=(0.25,) * 3)
    source = SimpleNamespace(network=lambda: build(num_classes=4, stem=stem).eval(), metadata=metadata)
    eager = TorchBackend(source, "cuda:0", precision, torch.get_num_threads())
    with torch.inference_mode():
        images = torch.zeros((6, 3, 32, 32), dtype=torch.uint8, device=GPU)
        network = FusedNetwork(eager.network, kernels())
        watch.forget()
        logits = eager.logits_by(network, images)
    assert (logits.device, logits.dtype, tuple(logits.shape)) == (GPU, torch.float32, (6, 4))
    assert watch.copies == []
    assert watch.without_kernel() == []
    assert watch.convolved == {getattr(torch, precision)}
    of_constants = {"aten::div.Tensor", "aten::reciprocal"}  # scale and offset are ready before: each is a kernel
    assert not of_constants & watch.operations
