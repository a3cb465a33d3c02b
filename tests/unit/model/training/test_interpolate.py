"""Averages of two networks' weights, and batch norm's statistics taken anew."""

import torch
from torch import nn

from model.training.interpolate import interpolate, reestimate_batch_norm


def test_each_tensor_lies_between_the_two():
    network = nn.Linear(2, 2)
    network.load_state_dict({"weight": torch.ones(2, 2), "bias": torch.zeros(2)})
    interpolate(network, {"weight": torch.full((2, 2), 5.0, dtype=torch.float16), "bias": torch.ones(2)}, 0.25)
    assert torch.equal(network.weight, torch.full((2, 2), 2.0))
    assert torch.equal(network.bias, torch.full((2,), 0.25))


def test_statistics_are_those_of_the_images(monkeypatch):
    monkeypatch.setattr("model.training.interpolate.STATISTICS_BATCH", 10)
    torch.manual_seed(0)
    network = nn.Sequential(nn.BatchNorm2d(3)).eval()
    network[0].running_mean.fill_(7)
    network[0].num_batches_tracked.fill_(10)
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8)
    reestimate_batch_norm(network, images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    normalised = (images.float() / 255 - 0.5) / 0.25
    torch.testing.assert_close(network[0].running_mean, normalised.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(network[0].running_var, normalised.var(dim=(0, 2, 3)), atol=1e-2, rtol=1e-2)
    assert network[0].momentum == 0.1
    assert not network.training


def test_an_image_beyond_whole_batches_counts_as_one_image(monkeypatch):
    torch.manual_seed(0)
    images = torch.randint(0, 256, (41, 3, 8, 8), dtype=torch.uint8)
    images[-1] = 255
    networks = [nn.Sequential(nn.BatchNorm2d(3)).eval() for _ in range(2)]
    for network, batch_size in zip(networks, (41, 10), strict=True):
        monkeypatch.setattr("model.training.interpolate.STATISTICS_BATCH", batch_size)
        reestimate_batch_norm(network, images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    whole, parts = (network[0].running_mean for network in networks)
    torch.testing.assert_close(parts, whole, atol=0.02, rtol=0)


def test_statistics_of_large_images_are_taken_of_smaller_batches():
    seen = []
    network = nn.Sequential(nn.BatchNorm2d(3))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for side, count in ((32, 500), (512, 32)):
        images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(count, -1, -1, -1)
        reestimate_batch_norm(network, images, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    assert seen == [250, 250, 8, 8, 8, 8]
