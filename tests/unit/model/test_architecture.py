"""The layers as described without torch are those that torch builds."""

import pytest
import torch
from torch import nn

from model.architecture import ARCHITECTURES, Architecture, BlockSpec, ConvSpec

EVERY = [
    *(Architecture(arch, 7, stem) for arch in ARCHITECTURES for stem in ("cifar", "imagenet")),
    *(Architecture(arch, shortcut="none") for arch in ("resnet18", "resnet50", "resnet56")),
    Architecture("resnet50", groups=32, width_per_group=4),
    Architecture("resnet101", width_per_group=128),
    Architecture("resnet50", groups=3, width_per_group=5),
]


def built(architecture):
    with torch.device("meta"):
        return architecture.build()


@pytest.mark.parametrize("architecture", EVERY, ids=lambda one: "-".join(map(str, one.to_dict().values())))
def test_a_checkpoint_has_the_tensors_of_the_network_that_torch_builds(architecture):
    state = built(architecture).state_dict()
    kept = {name: tuple(value.shape) for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert architecture.network_spec().shapes == kept


@pytest.mark.parametrize("architecture", EVERY, ids=lambda one: "-".join(map(str, one.to_dict().values())))
def test_every_convolution_is_the_one_that_torch_builds(architecture):
    network, spec = built(architecture), architecture.network_spec()
    assert [layer.name for layer in spec.convolutions] == [
        name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)
    ]
    for layer in spec.convolutions:
        conv = network.get_submodule(layer.name)
        assert isinstance(network.get_submodule(layer.norm), nn.BatchNorm2d)
        assert (conv.in_channels, conv.out_channels, conv.groups) == (
            layer.in_channels,
            layer.out_channels,
            layer.groups,
        )
        for pair, one in ((conv.kernel_size, layer.kernel), (conv.stride, layer.stride), (conv.padding, layer.padding)):
            assert pair == (one, one)
    assert spec.pool == hasattr(network.stem, "pool")


def test_an_identity_needs_no_projection_and_a_plain_block_has_neither():
    assert BlockSpec("b", "basic", 8, 8).projection is None
    assert BlockSpec("b", "basic", 8, 16).projection == ConvSpec("b.shortcut.conv", "b.shortcut.norm", 8, 16, 1)
    assert BlockSpec("b", "bottleneck", 32, 8, stride=2).projection.stride == 2
    assert BlockSpec("b", "basic", 8, 16, stride=2, shortcut="none").projection is None
