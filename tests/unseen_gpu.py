"""Tensors on a GPU that is not here: shapes, types and devices are real, numbers there are none.

torch's FakeTensorMode lets operations run on "cuda:0" without a driver. It refuses what a GPU would: tensors of two
devices in one operation, and whatever needs a number, for which the host would have to wait. What it lacks is mended
here: moving a module, `backward` (its threads ask the driver), SGD in one kernel, and copies of a network.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda:0")

# One of them is enough for an operation to be had on a GPU; the others are made of operations that are.
KERNELS = (
    "CUDA",
    "AutogradCUDA",
    "CompositeImplicitAutograd",
    "CompositeExplicitAutograd",
    "CompositeExplicitAutogradNonFunctional",
)


def _convolution_add_relu(x, weight, z, _alpha, bias, stride, padding, dilation, groups):
    result = torch.convolution(x, weight, bias, stride, padding, dilation, False, [0, 0], groups)
    assert (z.shape, z.dtype) == (result.shape, result.dtype)
    return result


# What comes of these without numbers, torch does not know.
INSTEAD = {
    torch.ops.aten._fused_sgd_.default: lambda *_args, **_options: None,
    torch.ops.aten.cudnn_convolution_add_relu.default: _convolution_add_relu,
}


class Watch(TorchDispatchMode):
    """What was done since it was last told to forget: on the GPU, of that with the host as well, and by convolutions.

    Of convolutions it knows their types, not their layout: which kernel would be chosen, only a GPU tells.
    """

    def __init__(self):
        super().__init__()
        self.forget()

    def forget(self):
        self.operations = set()
        self.copies = []  # between GPU and host
        self.convolved = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = INSTEAD.get(function, function)(*args, **kwargs)
        # A number in a tensor of no dimensions goes along with a kernel's arguments.
        tensors = [one for one in tree_leaves((args, kwargs, result)) if isinstance(one, Tensor)]
        if any(one.is_cuda for one in tensors):
            self.operations.add(function.name())
            if any(not one.is_cuda and one.ndim for one in tensors):
                self.copies.append(function.name())
            if "conv" in function.name():
                self.convolved.add(args[0].dtype)
        return result

    def without_kernel(self):
        """Return the operations that this torch cannot do on a GPU."""
        has = torch._C._dispatch_has_kernel_for_dispatch_key
        named = [name for name in self.operations if not name.startswith("prim::")]
        return sorted(name for name in named if not any(has(name, key) for key in KERNELS))


@contextmanager
def unseen_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    """Have a GPU of the Hopper generation for a while; tensors made meanwhile cannot be used afterwards."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_args, **_options: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _device=None: (9, 0))
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(FakeTensorMode, "__deepcopy__", lambda self, _memo: self, raising=False)
    monkeypatch.setattr(nn.Module, "_apply", _apply)
    monkeypatch.setattr(Tensor, "backward", _backward)
    with FakeTensorMode(), Watch() as watch:
        yield watch


def _apply(module, convert, recurse=True):
    with torch.no_grad():
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    part._parameters[name] = nn.Parameter(convert(parameter), parameter.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = convert(buffer)
    return module


def _backward(loss):
    """Give each leaf that the loss depends on a gradient of its shape, type and device."""
    assert loss.requires_grad
    seen, waiting = set(), [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            node.variable.grad = torch.zeros_like(node.variable)
        waiting.extend(following for following, _ in node.next_functions)
