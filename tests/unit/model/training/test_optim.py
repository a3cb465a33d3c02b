import pytest
import torch
from torch import nn

from model.resnet import resnet18
from model.training.optim import MovingAverage, one_cycle, parameter_groups


def small_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))


def test_weight_decay_acts_on_convolution_and_linear_weights_only() -> None:
    network = resnet18()
    decayed, free = parameter_groups(network, 0.25)
    name_of = {id(parameter): name for name, parameter in network.named_parameters()}
    decayed_names = {name_of[id(parameter)] for parameter in decayed["params"]}
    free_names = {name_of[id(parameter)] for parameter in free["params"]}
    assert (decayed["weight_decay"], free["weight_decay"]) == (0.25, 0.0)
    assert decayed_names == {name for name in name_of.values() if "conv" in name or name == "head.weight"}
    assert free_names == set(name_of.values()) - decayed_names


def test_frozen_parameters_are_in_no_group() -> None:
    network = small_network()
    network[0].weight.requires_grad_(False)
    groups = parameter_groups(network, 0.1)
    assert [len(group["params"]) for group in groups] == [1, 4]


def test_one_cycle_rises_to_its_peak_and_falls_to_nothing() -> None:
    rates = [one_cycle(step, steps=1000, warmup=0.2, peak=0.4) for step in range(1000)]
    peak = rates.index(max(rates))
    assert 0 < rates[0] < 0.002
    assert 0 < rates[-1] < 0.002
    assert peak in (199, 200)
    assert rates[peak] == pytest.approx(0.4, rel=0.01)
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_one_cycle_without_warmup_starts_at_the_peak() -> None:
    assert one_cycle(0, steps=1000, warmup=0.0, peak=0.4) == pytest.approx(0.4, rel=0.01)


def test_moving_average_equals_a_hand_computation() -> None:
    network = small_network()
    average = MovingAverage(network, decay=0.25)
    expected = {name: value.double() for name, value in network.state_dict().items()}
    for update in (1, 2, 3):
        network(torch.randn(8, 3, 4, 4))  # moves the batch-norm statistics
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
        average.update(network)
        decay = min(0.25, (1 + update) / (10 + update))  # 2/11, then 3/12, then the ceiling
        for name, value in network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    averaged = average.network.state_dict()
    assert int(averaged.pop("1.num_batches_tracked")) == 3
    assert "1.running_mean" in averaged
    assert "1.running_var" in averaged
    for name, value in averaged.items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)


def test_moving_average_is_a_frozen_copy_in_evaluation_mode() -> None:
    network = small_network().train()
    average = MovingAverage(network, decay=0.9)
    assert not average.network.training
    assert not any(parameter.requires_grad for parameter in average.network.parameters())
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
