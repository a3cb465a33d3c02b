import re

import pytest
import torch
import torchvision
from torch import Tensor, nn

from model.resnet import (
    ARCHITECTURES,
    Architecture,
    Projection,
    ResNet,
    count_macs,
    count_parameters,
    make_shortcut,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)

BUILDERS = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "resnet101": resnet101,
    "resnet152": resnet152,
}


def our_name(theirs: str) -> str:
    name = re.sub(r"^conv1\.", "stem.conv.", theirs)
    name = re.sub(r"^bn1\.", "stem.norm.", name)
    name = re.sub(r"^layer(\d)\.", lambda match: f"stages.{int(match[1]) - 1}.", name)
    name = re.sub(r"\.bn(\d)\.", r".norm\1.", name)
    name = name.replace("downsample.0.", "shortcut.conv.").replace("downsample.1.", "shortcut.norm.")
    return re.sub(r"^fc\.", "head.", name)


def random_tensor(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    shape = like.shape
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=like.dtype)
    if len(shape) > 1:
        return torch.randn(shape, generator=generator) / like[0].numel() ** 0.5
    if name.endswith(("running_var", "weight")):
        return torch.rand(shape, generator=generator) / 2 + 0.5
    return torch.randn(shape, generator=generator) / 5


def meta_pair(name: str) -> tuple[nn.Module, ResNet]:
    with torch.device("meta"):
        return getattr(torchvision.models, name)(), BUILDERS[name](1000, "imagenet")


def test_resnet18_maps_a_batch_of_cifar_images_to_ten_logits() -> None:
    network = resnet18(num_classes=10).eval()
    with torch.inference_mode():
        logits = network(torch.randn(64, 3, 32, 32))
    assert logits.shape == (64, 10)
    assert logits.isfinite().all()


def test_resnet18_has_the_published_size() -> None:
    network = resnet18(num_classes=10)
    assert round(count_parameters(network) / 1e6, 2) == 11.17
    assert round(count_macs(network, 32) / 1e9, 2) == 0.56


def test_count_macs_leaves_the_network_as_it_was() -> None:
    network = resnet18()
    count_macs(network, 8)
    assert network.training
    assert not any(module._forward_hooks for module in network.modules())
    assert float(network.stem.norm.running_mean.abs().sum()) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_count_equals_torchvisions(name: str) -> None:
    theirs, ours = meta_pair(name)
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_equal_torchvisions_with_the_same_tensors(name: str) -> None:
    theirs, ours = meta_pair(name)
    generator = torch.Generator().manual_seed(0)
    tensors = {key: random_tensor(key, like, generator) for key, like in theirs.state_dict().items()}
    theirs.load_state_dict(tensors, assign=True)
    ours.load_state_dict({our_name(key): value for key, value in tensors.items()}, assign=True)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.inference_mode():
        expected = theirs.eval()(images)
        logits = ours.eval()(images)
    assert 0.1 < float(expected.std()) < 20  # a scale at which 1e-5 means something
    assert float((expected[0] - expected[1]).abs().max()) > 0.01  # and the images matter
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_shortcut_is_a_projection_only_where_the_shape_changes(name: str) -> None:
    _, network = meta_pair(name)
    first_stage_widens = name == "resnet50"
    for number, stage in enumerate(network.stages):
        first, *others = stage
        assert isinstance(first.shortcut, Projection) == (number > 0 or first_stage_widens)
        assert all(isinstance(block.shortcut, nn.Identity) for block in others)


@pytest.mark.parametrize(("channels", "stride"), [((8, 16), 1), ((8, 8), 2), ((8, 16), 2)])
def test_projection_brings_the_input_to_the_new_shape(channels: tuple[int, int], stride: int) -> None:
    shortcut = make_shortcut(*channels, stride)
    assert isinstance(shortcut, Projection)
    assert shortcut(torch.randn(2, channels[0], 8, 8)).shape == (2, channels[1], 8 // stride, 8 // stride)


def test_identity_shortcut_returns_its_input() -> None:
    images = torch.randn(2, 8, 4, 4)
    assert torch.equal(make_shortcut(8, 8, 1)(images), images)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (Architecture("resnet20"), "unknown architecture 'resnet20'"),
        (Architecture(stem="tiny"), "unknown stem 'tiny'"),
        (Architecture(num_classes=0), "at least 1"),
    ],
)
def test_unknown_architecture_options_are_refused(architecture: Architecture, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        architecture.build()
