"""Every kind of network as an OpenVINO model: the same answers as PyTorch's, and eight-bit ones that are close."""

import numpy as np
import pytest
import torch

from model.architecture import ConvSpec
from model.runtimes import openvino_graph
from model.runtimes.openvino_core import core
from model.runtimes.openvino_graph import largest_weight, openvino_model, quantised_model
from model.transforms import normalise
from tests.unit.model.runtimes.networks import NETWORKS, described, network

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)


def expected(net, images):
    with torch.inference_mode():
        return net(normalise(torch.from_numpy(images), torch.tensor(MEAN), torch.tensor(STD))).numpy()


def answers(model, images):
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([images])[0]


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(map(str, options.values())))
def test_floats_are_what_pytorch_computes(options, images):
    net = network(**options)
    wanted = expected(net, images)
    np.testing.assert_allclose(
        answers(openvino_model(*described(net), MEAN, STD), images), wanted, rtol=1e-3, atol=1e-3
    )


@pytest.mark.parametrize("options", NETWORKS, ids=lambda options: "-".join(map(str, options.values())))
def test_integers_are_close(options, images):
    net = network(**options)
    wanted = expected(net, images)
    got = answers(quantised_model(*described(net), MEAN, STD, images=images, threads=1), images)
    spread = wanted.std()
    assert np.abs(got - wanted).max() > 0  # it does round
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.25 * spread


def test_rounded_weights_shift_no_channel(images, monkeypatch):
    """On average over the images that the ranges come from, the answers are those in floats."""
    net = network(arch="resnet20")
    wanted = expected(net, images)

    def off_by():
        got = answers(quantised_model(*described(net), MEAN, STD, images=images, threads=1), images)
        return np.abs((got - wanted).mean(axis=0)).mean()

    corrected = off_by()
    monkeypatch.setattr(openvino_graph, "_mean_rounding_error", lambda *_: 0)
    assert corrected < 0.8 * off_by()


LAYERS = {
    "padded": ConvSpec("conv", "bn", 6, 8, kernel=3),
    "strided": ConvSpec("conv", "bn", 6, 8, kernel=3, stride=2),
    "grouped": ConvSpec("conv", "bn", 6, 8, kernel=3, groups=2),
    "projection": ConvSpec("conv", "bn", 6, 8, kernel=1, stride=2),
    "ImageNet's stem": ConvSpec("conv", "bn", 3, 8, kernel=7, stride=2),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layers_shift_is_the_mean_of_its_errors(layer):
    chance = np.random.default_rng(0)
    weight = chance.normal(size=layer.shapes["conv.weight"]).astype(np.float32)
    inputs = chance.normal(1, 1, (4, layer.in_channels, 11, 11)).astype(np.float32)
    step = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 64
    error = np.round(weight / step) * step - weight
    outputs = torch.nn.functional.conv2d(
        *map(torch.from_numpy, (inputs, error)), stride=layer.stride, padding=layer.padding, groups=layer.groups
    )
    windows = openvino_graph._mean_windows(inputs.mean(axis=0), layer)
    shift = openvino_graph._mean_rounding_error(weight, windows, largest=64)
    np.testing.assert_allclose(shift, outputs.mean(dim=(0, 2, 3)).numpy(), rtol=1e-4, atol=1e-6)


def test_sums_of_large_integers_are_not_cut_off(images):
    """With weights of eight bits on x86 without VNNI this network's answers would be 1.1 spreads away, not 0.01."""
    net = network(arch="resnet20")
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.fill_(0.1)
    for _ in range(20):
        net.train()(torch.randn(64, 3, 32, 32))
    wanted = expected(net.eval(), images)
    got = answers(quantised_model(*described(net), MEAN, STD, images=images, threads=1), images)
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.25 * wanted.std()


@pytest.mark.parametrize("integers", [127, 64])
def test_weights_of_seven_bits_are_close_too_whatever_this_processor_needs(integers, images, monkeypatch):
    if integers > largest_weight():
        pytest.skip("weights of eight bits overflow here")
    monkeypatch.setattr(openvino_graph, "largest_weight", lambda: integers)
    net = network(arch="resnet18")
    wanted = expected(net, images)
    got = answers(quantised_model(*described(net), MEAN, STD, images=images, threads=1), images)
    assert np.sqrt(((got - wanted) ** 2).mean()) < 0.25 * wanted.std()


def test_one_image_and_many_get_the_same_answer(images):
    model = openvino_model(*described(network(arch="resnet20")), MEAN, STD)
    alone = np.concatenate([answers(model, images[i : i + 1]) for i in range(len(images))])
    np.testing.assert_allclose(alone, answers(model, images), atol=1e-4)
