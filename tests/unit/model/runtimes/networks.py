"""Networks of every kind, and what a runtime's model of one is written down from."""

import torch

from model.architecture import Architecture
from model.runtimes.folded_layers import fold

NETWORKS = [
    {"arch": "resnet18"},
    {"arch": "resnet20", "shortcut": "none"},
    {"arch": "resnet56"},
    {"arch": "resnet18", "stem": "imagenet"},
    {"arch": "resnet50"},
    {"arch": "resnet50", "groups": 32, "width_per_group": 4},
]


def network(seed=0, **options):
    """A network whose batch norm has seen something, so that folding it matters."""
    torch.manual_seed(seed)
    architecture = Architecture(num_classes=7, **options)
    built = architecture.build()
    built.spec = architecture.network_spec()
    built.train()(torch.randn(8, 3, 32, 32))
    return built.eval()


def described(net):
    """What a model is written down from."""
    return net.spec, fold(net.spec, {name: value.numpy() for name, value in net.state_dict().items()})
