import numpy as np
import torch

from model.architecture import Architecture
from model.runtimes.batch_norm_folding import fold_batch_norm
from model.runtimes.folded_layers import fold

GROUPED = Architecture("resnet50", groups=2, width_per_group=8)


def test_layers_are_those_that_torch_folds():
    network = GROUPED.build()
    for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).data.uniform_(0.5, 1.5)
    network.eval()
    tensors = {name: value.numpy().copy() for name, value in network.state_dict().items()}
    kept = []
    layers = fold(GROUPED.network_spec(), tensors, lambda array: kept.append(array) or array)
    folded = fold_batch_norm(network)
    modules = {name: one for name, one in folded.named_modules() if isinstance(one, torch.nn.Conv2d | torch.nn.Linear)}
    assert layers.keys() == modules.keys()
    assert len(kept) == len(layers)
    for name, module in modules.items():
        np.testing.assert_allclose(layers[name].weight, module.weight.detach().numpy(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(layers[name].bias, module.bias.detach().numpy(), rtol=1e-4, atol=1e-5)
