import copy

import pytest
import torch
from torch import Tensor, nn

from model.architecture import Architecture
from model.training.im2col_convolution import MAX_PIXELS, Im2colConv2d, use_im2col_convolutions

SHAPES = [
    pytest.param(8, 16, 3, 1, 4, id="3x3"),
    pytest.param(8, 16, 3, 2, 8, id="3x3, every second pixel"),
    pytest.param(8, 16, 3, 2, 7, id="3x3, an odd side"),
    pytest.param(8, 16, 1, 2, 8, id="1x1, every second pixel"),
    pytest.param(8, 16, 1, 1, 1, id="1x1 of one pixel"),
    pytest.param(3, 4, 3, 1, 5, id="larger than what is done by patches"),
]


def gradients(conv: nn.Conv2d, x: Tensor, *, autocast: bool) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the output and the gradients of input and weight."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = conv(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    (y.float() * weights).sum().backward()
    return y, x.grad, conv.weight.grad


@pytest.mark.parametrize(("channels", "out", "kernel", "stride", "side"), SHAPES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_those_of_a_plain_convolution(
    channels: int, out: int, kernel: int, stride: int, side: int, memory_format: torch.memory_format, autocast: bool
) -> None:
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, out, kernel, stride=stride, padding=kernel // 2, bias=False)
    plain = plain.to(memory_format=memory_format)
    patched = Im2colConv2d.like(copy.deepcopy(plain))
    x = torch.randn(6, channels, side, side).contiguous(memory_format=memory_format)
    expected, found = gradients(plain, x, autocast=autocast), gradients(patched, x, autocast=autocast)
    for one, other in zip(expected, found, strict=True):
        assert one is not None
        assert other is not None
        assert one.dtype == other.dtype
        # In bfloat16 each sum is rounded, by some processors also on the way: by a share of the largest.
        atol = 0.01 * one.detach().float().abs().max().item() if autocast else 1e-5
        torch.testing.assert_close(other, one, rtol=0.02 if autocast else 1e-4, atol=atol)


def test_a_frozen_weight_or_input_gets_no_gradient() -> None:
    conv = Im2colConv2d(4, 4, 3, padding=1, bias=False)
    conv.weight.requires_grad_(False)
    x = torch.randn(2, 4, 2, 2, requires_grad=True)
    conv(x).sum().backward()
    assert x.grad is not None
    assert conv.weight.grad is None


def test_only_small_pictures_are_done_by_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def note(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
        asked.append(tuple(x.shape[2:]))
        return torch.nn.functional.conv2d(x, weight, stride=stride, padding=padding)

    monkeypatch.setattr("model.training.im2col_convolution._convolve", note)
    conv = Im2colConv2d(4, 4, 3, padding=1, bias=False)
    for side in (2, 4, 5, 32):
        conv(torch.zeros(1, 4, side, side))
    with torch.no_grad():
        conv(torch.zeros(1, 4, 2, 2))
    assert asked == [(2, 2), (4, 4)]
    assert MAX_PIXELS == 4 * 4


@pytest.mark.parametrize("options", [{"arch": "resnet18"}, {"arch": "resnet50", "groups": 2}, {"stem": "imagenet"}])
def test_a_network_keeps_its_parameters_and_what_cannot_be_replaced(options: dict[str, object]) -> None:
    network = Architecture(**options).build()  # type: ignore[arg-type]
    before = dict(network.named_parameters())
    use_im2col_convolutions(network)
    assert dict(network.named_parameters()).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in network.named_parameters())
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            assert isinstance(module, Im2colConv2d) == (module.groups == 1)
