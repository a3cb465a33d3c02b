import re
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from model.architecture import MAX_GROUPED_WIDTH, Architecture, BlockSpec
from model.cost import count_macs, count_parameters
from model.resnet import (
    Projection,
    ResNet,
    make_block,
    make_shortcut,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from model.runtimes.batch_norm_folding import fold_batch_norm

# Ours, by torchvision's names.
BUILDERS: dict[str, Callable[[], ResNet]] = {
    "resnet18": lambda: resnet18(1000, "imagenet"),
    "resnet34": lambda: resnet34(1000, "imagenet"),
    "resnet50": lambda: resnet50(1000, "imagenet"),
    "resnet101": lambda: resnet101(1000, "imagenet"),
    "resnet152": lambda: resnet152(1000, "imagenet"),
    "resnext50_32x4d": Architecture("resnet50", 1000, "imagenet", groups=32, width_per_group=4).build,
    "wide_resnet50_2": Architecture("resnet50", 1000, "imagenet", width_per_group=128).build,
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
        return getattr(torchvision.models, name)(), BUILDERS[name]()


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


@pytest.mark.parametrize("name", BUILDERS)
def test_parameter_count_equals_torchvisions(name: str) -> None:
    theirs, ours = meta_pair(name)
    assert count_parameters(ours) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("name", BUILDERS)
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
    shortcut = make_shortcut(BlockSpec("block", "basic", *channels, stride))
    assert isinstance(shortcut, Projection)
    assert shortcut(torch.randn(2, channels[0], 8, 8)).shape == (2, channels[1], 8 // stride, 8 // stride)


def test_identity_shortcut_returns_its_input() -> None:
    images = torch.randn(2, 8, 4, 4)
    assert torch.equal(make_shortcut(BlockSpec("block", "basic", 8, 8))(images), images)


def conv(inputs: int, outputs: int, kernel: int) -> int:
    """Count the values of a convolution and of its batch norm."""
    return inputs * outputs * kernel**2 + 2 * outputs


def by_hand(blocks: int, *, projections: bool = True) -> int:
    """Count the parameters of a network of the paper's section 4.2, 6 * blocks + 2 layers deep."""
    stem = conv(3, 16, 3)
    first = 2 * blocks * conv(16, 16, 3)
    second = conv(16, 32, 3) + (2 * blocks - 1) * conv(32, 32, 3)
    third = conv(32, 64, 3) + (2 * blocks - 1) * conv(64, 64, 3)
    shortcuts = conv(16, 32, 1) + conv(32, 64, 1)
    head = 64 * 10 + 10
    return stem + first + second + third + head + (shortcuts if projections else 0)


@pytest.mark.parametrize(("name", "blocks", "expected"), [("resnet20", 3, 272_474), ("resnet56", 9, 855_770)])
def test_narrow_networks_have_the_papers_size_and_two_projections(name: str, blocks: int, expected: int) -> None:
    network = Architecture(name).build()
    assert count_parameters(network) == by_hand(blocks) == expected
    plain = Architecture(name, shortcut="none").build()
    assert count_parameters(plain) == by_hand(blocks, projections=False)
    assert sum(isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) for module in plain.modules()) == (
        6 * blocks + 1
    )


def test_resnet56_halves_the_image_twice() -> None:
    features = []
    network = Architecture("resnet56").build().eval()
    network.stages.register_forward_hook(lambda _module, _inputs, output: features.append(output.shape))
    with torch.inference_mode():
        assert network(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert features == [(2, 64, 8, 8)]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_plain_network_is_the_residual_one_without_its_shortcuts(name: str) -> None:
    with torch.device("meta"):
        plain, residual = Architecture(name, shortcut="none").build(), Architecture(name).build()
    shapes = {key: value.shape for key, value in residual.state_dict().items() if ".shortcut." not in key}
    assert {key: value.shape for key, value in plain.state_dict().items()} == shapes


def test_plain_block_adds_nothing() -> None:
    images = torch.randn(2, 8, 4, 4)
    for kind, width, last in (("basic", 8, "norm2"), ("bottleneck", 2, "norm3")):
        residual = make_block(BlockSpec("block", kind, 8, width)).eval()
        nn.init.zeros_(getattr(residual, last).weight)  # F(x) = 0, so that only the shortcut is left
        plain = make_block(BlockSpec("block", kind, 8, width, shortcut="none")).eval()
        plain.load_state_dict(residual.state_dict())
        assert torch.equal(residual(images), images.relu())
        assert torch.equal(plain(images), torch.zeros_like(images))


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("resnet50", groups=32, width_per_group=4),
        Architecture("resnet18", shortcut="none"),
        Architecture("resnet50", shortcut="none"),
        Architecture("resnet20"),
    ],
)
def test_folding_batch_norm_leaves_every_kind_of_network_the_same_function(architecture: Architecture) -> None:
    generator = torch.Generator().manual_seed(0)
    network = architecture.build()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = 1.0
        norm.weight.data = random_tensor("weight", norm.weight, generator)
        norm.bias.data = random_tensor("bias", norm.bias, generator)
    with torch.no_grad():
        network(torch.randn(16, 3, 32, 32, generator=generator))  # statistics under which no signal dies
    network.eval().double()  # so that nothing but a mistake is left to see
    images = torch.randn(2, 3, 32, 32, generator=generator).double()
    with torch.inference_mode():
        expected = network(images)
        folded = fold_batch_norm(network)
        assert not [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
        logits = folded(images)
    assert float((expected[0] - expected[1]).abs().max()) > 0.01
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)


def test_options_that_an_older_checkpoint_lacks_have_their_defaults() -> None:
    shipped = {"arch": "resnet18", "num_classes": 10, "stem": "cifar"}
    assert Architecture.from_dict(shipped) == Architecture("resnet18", 10, "cifar", 1, 64, "identity")
    newer = Architecture("resnet50", 3, "imagenet", groups=32, width_per_group=4, shortcut="none")
    assert Architecture.from_dict(newer.to_dict()) == newer
    with pytest.raises(ValueError, match=r"unknown architecture options \['depth', 'width'\]"):
        Architecture.from_dict({**shipped, "width": 2, "depth": 3})


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        (Architecture("resnet19"), "unknown architecture 'resnet19'"),
        (Architecture(stem="tiny"), "unknown stem 'tiny'"),
        (Architecture(shortcut="some"), "unknown shortcut 'some'"),
        (Architecture(shortcut=["none"]), "unknown shortcut"),
        (Architecture(num_classes=0), "at least 1"),
        (Architecture(num_classes=2.0), "an integer of at least 1"),
        (Architecture(groups=2), "for bottleneck blocks"),
        (Architecture("resnet56", width_per_group=32), "for bottleneck blocks"),
        (Architecture("resnet50", groups=0), "integers of at least 1"),
        (Architecture("resnet50", groups=True), "integers of at least 1"),
        (Architecture("resnet50", groups="32"), "integers of at least 1"),
        (Architecture("resnet50", width_per_group=4.0), "integers of at least 1"),
        (Architecture("resnet50", width_per_group=-64), "integers of at least 1"),
        (Architecture("resnet50", width_per_group=MAX_GROUPED_WIDTH + 1), "their product at most 2048"),
        (Architecture("resnet50", groups=1025, width_per_group=2), "their product at most 2048"),
        (Architecture("resnet50", groups=10**30), "their product at most 2048"),
    ],
)
def test_architecture_options_that_cannot_be_are_refused(architecture: Architecture, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        architecture.build()
