"""A network that learns, step by step: weights, optimiser, moving average and training images on one device."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from model.architecture import Architecture
from model.checkpoint import Checkpoint, tensors_to_store
from model.data import Dataset
from model.evaluate import compute_logits
from model.hardware.precision import has_fast_bfloat16
from model.resnet import ResNet
from model.training.augment import AugmentationDraws, augment_batch, draw_augmentation, random_stream
from model.training.checks import check_same_network
from model.training.distributed import World
from model.training.errors import TrainingError
from model.training.im2col_convolution import use_im2col_convolutions
from model.training.optim import MovingAverage, one_cycle, parameter_groups
from model.training.recipe import Recipe
from model.transforms import normalise, resize_batch

log = logging.getLogger(__name__)


def compiler_works(device: torch.device) -> bool:
    """Try torch.compile on next to nothing; warn if it fails. It wants a C compiler, and Python's headers for a GPU."""
    try:
        torch.compile(lambda value: value.cos() + 1, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        log.warning("training goes on uncompiled: torch.compile does not work here: %s", reason)
        return False
    return True


class Learner:
    """What the steps of a run work on. `world` are the processes that share each batch.

    The optimiser is SGD with Nesterov's momentum: Sutskever et al. 2013, "On the importance of initialization and
    momentum in deep learning" (ICML).
    """

    def __init__(
        self,
        recipe: Recipe,
        training: Dataset,
        *,
        device: torch.device,
        init_from: Checkpoint | None = None,
        world: World | None = None,
        compiled: bool = False,
    ) -> None:
        self.world = world or World()
        if len(training) < recipe.batch_size:
            raise TrainingError(f"{len(training)} training images are fewer than one batch of {recipe.batch_size}")
        self.recipe = recipe
        self.training = training
        self.device = device
        # Agreed upon: some CPUs are measured, and what one finds another of the same kind may not.
        slow = self.world.any(not has_fast_bfloat16(device), device)
        self.autocast = None if slow else torch.bfloat16
        if device.type == "cuda":
            torch.backends.cudnn.benchmark = True  # every step has the same few shapes: the search pays at once
        torch.manual_seed(recipe.seed)
        self.architecture = recipe.architecture(len(training.classes), training.images.shape[-1])
        self.network: ResNet = self.architecture.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if init_from is not None:
            self._take_weights(init_from)
        if device.type == "cpu":
            use_im2col_convolutions(self.network)
        self.average = MovingAverage(self.network, recipe.ema_decay)
        shared = self.world.wrap(self.network, device)
        # Every process must do the same: one that exchanges gradients at other moments would wait for ever.
        self.compiled = compiled and not self.world.any(not compiler_works(device), device)
        self.run_network = torch.compile(shared, dynamic=False) if self.compiled else shared
        groups = parameter_groups(self.network, recipe.weight_decay)
        self.optimiser = torch.optim.SGD(groups, lr=0.0, momentum=recipe.momentum, nesterov=True, fused=True)
        self.images = training.images.to(device)
        self.labels = training.labels.to(device)
        self.mean = torch.tensor(training.mean, device=device)
        self.std = torch.tensor(training.std, device=device)
        self.fill = (self.mean * 255).round().to(torch.uint8)
        self.steps_per_epoch = recipe.steps_per_epoch(len(training))

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    def hardware(self) -> dict[str, str]:
        """Return what does the work, and in which precision, as settings and checkpoint say it.

        The latter is the type that products are computed in, which a measurement chooses on some processors.
        """
        name = f"{torch.get_num_threads()} CPU threads"
        if self.device.type == "cuda":
            name = torch.cuda.get_device_name(self.device)
        precision = "float32" if self.autocast is None else str(self.autocast).removeprefix("torch.")
        return {
            "device": name if self.world.size == 1 else f"{self.world.size} processes, each {name}",
            "precision": precision,
        }

    def draw_epoch(self, epoch: int) -> tuple[Tensor, AugmentationDraws]:
        """Return an epoch's order, int64 (N,), and its augmentation, from (seed, epoch) alone."""
        count, size, seed = len(self.training), self.images.shape[-1], self.recipe.seed
        order = torch.randperm(count, generator=random_stream("order", seed, epoch))
        draws = draw_augmentation(self.recipe, count, size, seed=seed, epoch=epoch)
        return order.to(self.device), draws.to(self.device)

    def step(self, epoch: int, number: int, order: Tensor, draws: AugmentationDraws) -> tuple[Tensor, Tensor]:
        """Do step `number` of an epoch, given what `draw_epoch` returned for it; both are counted from 0.

        Returns the mean loss of this process's images and how many of them were right, 0-dimensional, on the device. Of
        an image with a CutMix patch, the label of the larger part is the right one.
        """
        recipe = self.recipe
        batch = order[number * recipe.batch_size : (number + 1) * recipe.batch_size]
        index = self.world.shard(batch)
        rate = one_cycle(epoch * self.steps_per_epoch + number, self.steps, recipe.warmup, recipe.learning_rate)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        labels = self.labels[index]
        images = augment_batch(self.images, index, draws, recipe, self.fill)
        logits = self._forward(images, recipe.size_of(epoch))
        loss = self._loss(logits, labels)
        if recipe.cutmix:
            chosen = draws.select(index)
            kept = chosen.kept_share(self.images.shape[-1])
            partners = self.labels[chosen.partner]
            loss = kept * loss + (1 - kept) * self._loss(logits, partners)
            labels = torch.where(kept >= 0.5, labels, partners)
        mean_loss = loss.mean()
        self.optimiser.zero_grad(set_to_none=True)
        mean_loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.average.update(self.network)
        return mean_loss.detach(), (logits.detach().argmax(dim=1) == labels).sum()

    def _forward(self, images: Tensor, size: int) -> Tensor:
        """Map uint8 (B, 3, S, S) to float32 logits (B, classes) at `size` pixels, with gradients."""
        batch = resize_batch(normalise(images, self.mean, self.std), size)
        batch = batch.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            logits: Tensor = self.run_network(batch)
        return logits.float()

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return each image's cross-entropy, float32 (B,), against labels int64 (B,) that are smoothed.

        Label smoothing: Szegedy et al. 2015, "Rethinking the Inception Architecture", arXiv:1512.00567.
        """
        return functional.cross_entropy(logits, labels, label_smoothing=self.recipe.label_smoothing, reduction="none")

    def compile(self) -> float:
        """Run every image size once, so that the compiler's time is not counted as training; return the seconds."""
        started = time.monotonic()
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.network.train()
        part = self.images[: self.recipe.batch_size // self.world.size]
        for size in {size for size, _ in self.recipe.phases}:
            self._forward(part, size).sum().backward()  # type: ignore[no-untyped-call]
        self.network.load_state_dict(before)  # batch statistics have moved
        self.optimiser.zero_grad(set_to_none=True)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.monotonic() - started

    def _take_weights(self, source: Checkpoint) -> None:
        """Start from a checkpoint's weights; with other classes, all but the head. Raises TrainingError."""
        check_same_network(self.architecture, Architecture.from_dict(source.metadata.architecture), str(source.path))
        weights = source.network().state_dict()
        if source.metadata.classes != self.training.classes:
            weights |= {f"head.{name}": value for name, value in self.network.head.state_dict().items()}
            log.info("the head starts fresh: %s has other classes", source.path)
        self.network.load_state_dict(weights)

    def logits(self, images: Tensor, size: int) -> Tensor:
        """Map uint8 (N, 3, S, S), resized to `size` pixels, to the averaged network's logits, float32 (N, classes)."""
        return compute_logits(
            self.average.network, images, self.training.mean, self.training.std, size=size, autocast=self.autocast
        )

    def is_finite(self) -> bool:
        """Return whether all weights are numbers, and those of the average also as a checkpoint stores them.

        A step's loss says nothing of what the step itself leaves.
        """
        tensors = [*self.network.state_dict().values(), *tensors_to_store(self.average.network).values()]
        return all(bool(tensor.isfinite().all()) for tensor in tensors)

    def state_dict(self) -> dict[str, Any]:
        """Return all that a step changes, and the precision that it was done in."""
        return {
            "autocast": self.autocast,
            "updates": self.average.updates,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state_dict` returned, and go on in its precision; older ones do not say which."""
        autocast = state.get("autocast", self.autocast)
        if autocast != self.autocast:
            log.info("going on in %s, as it was begun", "float32" if autocast is None else "bfloat16")
        self.autocast = autocast
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        self.optimiser.load_state_dict(state["optimiser"])
