"""The forward pass in few steps is the network's own, for every kind of block, stem and kernel."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from model.architecture import Architecture
from model.runtimes.batch_norm_folding import fold_batch_norm
from model.runtimes.fused_convolutions import CudnnKernels, FusedNetwork, PlainKernels

ARCHITECTURES = {
    "basic": Architecture("resnet18"),
    "three stages": Architecture("resnet20"),
    "plain": Architecture("resnet20", shortcut="none"),
    "imagenet stem": Architecture("resnet18", num_classes=7, stem="imagenet"),
    "bottleneck": Architecture("resnet50"),
    "grouped": Architecture("resnet50", groups=32, width_per_group=4),
}


class PaddedKernels(PlainKernels):
    in_channels = 8


@pytest.fixture(params=ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def network(request):
    """A folded network none of whose biases is 0."""
    torch.manual_seed(0)
    made = request.param.build().eval()
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            for numbers in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(numbers, 0.1, 0.6)
    return fold_batch_norm(made).to(memory_format=torch.channels_last)


def images(count):
    made = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
    return made.to(memory_format=torch.channels_last)


@pytest.fixture
def cudnn(monkeypatch):
    """What cuDNN's operation is documented to compute, on the CPU; collects the shapes it was given zeros for."""
    padded = []

    def add_relu(x, weight, z, alpha, bias, stride, padding, dilation, groups):
        y = functional.conv2d(x, weight, bias, stride, padding, dilation, groups)
        assert z.shape == y.shape
        assert z.is_contiguous(memory_format=torch.channels_last)  # otherwise it is copied, in each run
        assert alpha == 1 or not z.any()
        if alpha == 0:
            padded.append(z.shape)
        return torch.relu(y + alpha * z)

    monkeypatch.setattr(torch, "cudnn_convolution_add_relu", add_relu)
    return padded


@pytest.mark.parametrize("kernels", [PlainKernels, PaddedKernels, CudnnKernels])
@torch.inference_mode()
def test_it_computes_what_the_network_computes(network, cudnn, kernels):
    fused = FusedNetwork(network, kernels())
    for count in (3, 1):
        expected = network(images(count))
        assert expected.abs().max() > 0.1
        torch.testing.assert_close(fused(images(count)), expected, atol=1e-4, rtol=1e-4)
    assert bool(cudnn) == (kernels is CudnnKernels)


@torch.inference_mode()
def test_it_leaves_images_and_weights_alone(network):
    given, before = images(2), {name: value.clone() for name, value in network.state_dict().items()}
    FusedNetwork(network, PlainKernels())(given)
    torch.testing.assert_close(given, images(2), atol=0, rtol=0)
    for name, value in network.state_dict().items():
        torch.testing.assert_close(value, before[name], atol=0, rtol=0)


@torch.inference_mode()
def test_zeros_that_a_graph_may_know_stay_where_they_are(cudnn):
    kernels = CudnnKernels()
    fused = FusedNetwork(fold_batch_norm(ARCHITECTURES["three stages"].build().eval()), kernels)
    fused(images(2))
    (small,) = kernels._zeros
    fused(images(4))
    fused(images(2))
    assert len(kernels._zeros) == 2
    assert kernels._zeros[0] is small


def test_where_cudnn_has_no_such_operation_it_says_so():
    fused = FusedNetwork(fold_batch_norm(ARCHITECTURES["three stages"].build().eval()), CudnnKernels())
    with pytest.raises((RuntimeError, NotImplementedError)), torch.inference_mode():
        fused(images(1))
