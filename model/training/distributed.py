"""Several processes that train one network: who this one is, and what it shares with the others.

`torchrun` starts the processes and tells each its rank in environment variables; without it there is one process and
everything here does nothing. NCCL carries the data between GPUs, gloo between CPUs.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.training.errors import TrainingError


@dataclass(frozen=True)
class World:
    """This process's rank among `size` processes; rank 0 writes files."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def shard(self, batch: Tensor) -> Tensor:
        """Return this process's part of a global batch, which `size` must divide."""
        part = len(batch) // self.size
        return batch[self.rank * part : (self.rank + 1) * part]

    def all_reduce_sum_(self, value: Tensor) -> Tensor:
        """Replace a tensor, in place, by its sum over all processes, and return it."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def any(self, flag: bool, device: torch.device) -> bool:
        """Return whether the flag is set in any process."""
        return bool(self.all_reduce_sum_(torch.tensor(float(flag), device=device)) > 0) if self.size > 1 else flag

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the parts of all processes, which may differ in length, joined in the order of ranks."""
        if self.size == 1:
            return part
        parts: list[Tensor | None] = [None] * self.size
        dist.all_gather_object(parts, part.cpu())
        return torch.cat([one for one in parts if one is not None])

    def barrier(self) -> None:
        """Return once every process has come here."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """Return a module that runs `network`, averages gradients and shares batch statistics over all processes."""
        if self.size == 1:
            return network
        convert_sync_batch_norm(network, device)
        ids = [device] if device.type == "cuda" else None
        return DistributedDataParallel(network, device_ids=ids, **_leaving_buffers_alone())


def _leaving_buffers_alone() -> dict[str, Any]:
    """Return the option of the installed torch that keeps buffers from being sent at each step: they are alike anyway.

    torch 2.14 has given it another name, and warns of the one before, which is all that older ones know.
    """
    known = inspect.signature(DistributedDataParallel).parameters
    return {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}


@contextmanager
def join_world(device: torch.device) -> Iterator[tuple[World, torch.device]]:
    """Join the processes that torchrun started; yield this one's place and its own device.

    Raises ValueError if there are more processes on this machine than it has GPUs, and for a numbered one: each process
    takes the GPU of its own number.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(), device
        return
    if device.index is not None:
        raise ValueError(
            f"--device {device} under torchrun: each process takes the GPU of its own number; give --device cuda, "
            f"and choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(f"process {local} on this machine has no GPU: there are {torch.cuda.device_count()}")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size()), device
    except BaseException as error:
        # The others may wait for what this process will not do any more. NCCL's end would wait for them, and torchrun
        # ends them only once this process has ended.
        if device.type != "cuda" or (isinstance(error, TrainingError) and error.raised_by_all):
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def convert_sync_batch_norm(network: nn.Module, device: torch.device) -> None:
    """Make every batch norm of `network` normalise by the mean and variance of the global batch, in place.

    torch's own layer needs GPUs. It makes the host wait for the device three times, since batches may differ in length;
    the one below would not, but keeps four times the memory for the gradients.
    """
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for module in network.modules():
        for name, child in module.named_children():
            if type(child) is nn.BatchNorm2d:
                shared = CpuSyncBatchNorm2d(child.num_features)
                shared.load_state_dict(child.state_dict())
                setattr(module, name, shared)


class _AllReduceSum(torch.autograd.Function):
    """The sum of a tensor over all processes; every process's loss depends on every process's part."""

    @staticmethod
    def forward(_context: object, value: Tensor) -> Tensor:
        """Return the sum."""
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: object, *gradients: Tensor) -> Tensor:
        """Return the sum of the gradients."""
        return _AllReduceSum.forward(_context, gradients[0])


class CpuSyncBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over equally long batches of all processes, on CPUs."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to the same shape; updates the running statistics as one process would."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        values = x.float()
        world = dist.get_world_size()
        local = torch.stack([values.mean(dim=(0, 2, 3)), values.square().mean(dim=(0, 2, 3))])
        mean, mean_square = _AllReduceSum.apply(local) / world
        variance = (mean_square - mean.square()).clamp_min(0)
        with torch.no_grad():
            count = world * x.numel() // x.shape[1]
            momentum = self.momentum or 0.0
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * count / (count - 1), momentum)
            self.num_batches_tracked += 1
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normalised: Tensor = (values - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return normalised.to(x.dtype)
