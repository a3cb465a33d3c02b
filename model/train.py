"""The training loop: data on the device, batches by indexing, one checkpoint and a folder of evidence at the end.

A run is a folder: `settings.json`, `metrics.jsonl` (one line an epoch), `state.pt` (to go on after a crash) and
`checkpoint.safetensors`. Every epoch draws its random numbers from (seed, epoch) alone, so a run that was
interrupted and resumed sees what an undisturbed one would have seen.
"""

from __future__ import annotations

import io
import json
import logging
import math
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from model import checkpoint
from model.checkpoint import Checkpoint, Metadata
from model.data import Dataset, hold_out
from model.evaluate import compute_logits, fit_temperature, score
from model.optim import MovingAverage, one_cycle, parameter_groups
from model.precision import has_fast_bfloat16
from model.recipe import Recipe
from model.resnet import Architecture, ResNet
from model.transforms import CIFAR10_MEAN, CIFAR10_STD, augment, normalise, resize_batch

log = logging.getLogger(__name__)

SELF_TEST_COUNT = 16

Progress = Callable[[int, int, dict[str, float]], None]


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what was kept."""


def pick_device(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA if there is one, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


class Trainer:
    """One run: network, optimiser, average, data on the device, and the folder where it leaves its traces.

    With `temperature` given, nothing is fitted and the recipe may hold out no images. `init_from` is a checkpoint to
    go on from, with a recipe of its own, instead of fresh weights. `on_epoch` is called with every line of
    `metrics.jsonl` once it is written.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        out: Path,
        *,
        device: torch.device,
        temperature: float | None = None,
        init_from: Checkpoint | None = None,
        progress: Progress | None = None,
        on_epoch: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        if recipe.hold_out == 0 and temperature is None:
            raise TrainingError("nothing is held out to fit the temperature on: give --temperature or --hold-out")
        if temperature is not None and not temperature > 0:
            raise TrainingError(f"the temperature must be above 0, not {temperature}")
        self.recipe = recipe
        self.full = dataset
        self.out = out
        self.device = device
        self.fixed_temperature = temperature
        self.progress = progress
        self.on_epoch = on_epoch
        self.autocast = torch.bfloat16 if has_fast_bfloat16(device) else None
        self.training, self.held = hold_out(dataset, recipe.hold_out)
        if len(self.training) < recipe.batch_size:
            raise TrainingError(f"{len(self.training)} training images are fewer than one batch of {recipe.batch_size}")
        torch.manual_seed(recipe.seed)
        self.architecture = Architecture(recipe.arch, len(dataset.classes), "cifar")
        self.network: ResNet = self.architecture.build().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.init_from = init_from
        if init_from is not None:
            self._take_weights(init_from)
        self.average = MovingAverage(self.network, recipe.ema_decay)
        self.optimiser = torch.optim.SGD(
            parameter_groups(self.network, recipe.weight_decay),
            lr=0.0,
            momentum=recipe.momentum,
            nesterov=True,
            foreach=True,
        )
        self.images = self.training.images.to(device)
        self.labels = self.training.labels.to(device)
        self.mean = torch.tensor(CIFAR10_MEAN, device=device)
        self.std = torch.tensor(CIFAR10_STD, device=device)
        self.steps_per_epoch = len(self.training) // recipe.batch_size
        self.epoch = 0
        self.seconds = 0.0

    def _take_weights(self, source: Checkpoint) -> None:
        """Start from a checkpoint's weights. Raises TrainingError if it is of another network or other classes."""
        metadata = source.metadata
        if metadata.architecture != self.architecture.to_dict() or metadata.classes != self.full.classes:
            raise TrainingError(f"{source.path} is of another architecture or has other classes")
        self.network.load_state_dict(source.network().state_dict())

    def run(self) -> Path:
        """Train from the last saved state to the end and return the checkpoint's path. Raises TrainingError."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        settings = {"recipe": self.recipe.to_dict(), "device": str(self.device), "autocast": str(self.autocast)}
        checkpoint.write_atomically(self.out / "settings.json", json.dumps(settings, indent=1).encode())
        while self.epoch < self.recipe.epochs:
            line = self._train_epoch()
            with (self.out / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
            if self.on_epoch:
                self.on_epoch(line)
            log.info("%s", " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items()))
            self._save_state()
        return self._finish()

    def _train_epoch(self) -> dict[str, Any]:
        recipe, epoch = self.recipe, self.epoch
        size = recipe.size_of(epoch)
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.training), generator=generator).to(self.device)
        started = time.monotonic()
        loss_sum = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        self.network.train()
        for step in range(self.steps_per_epoch):
            index = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            loss, logits = self._step(index, epoch, step, size, generator)
            loss_sum += loss
            correct += (logits.argmax(dim=1) == self.labels[index]).sum()
            if self.progress and (step + 1) % 10 == 0:
                seen = (step + 1) * recipe.batch_size
                rate = seen / (time.monotonic() - started)
                now = {"loss": float(loss), "accuracy": float(correct) / seen, "images_per_s": rate}
                self.progress(epoch * self.steps_per_epoch + step + 1, recipe.epochs * self.steps_per_epoch, now)
        mean_loss = float(loss_sum) / self.steps_per_epoch
        if not math.isfinite(mean_loss):
            kept = f"the state after epoch {epoch} is kept in {self.out}" if epoch else "no state was saved yet"
            raise TrainingError(f"the loss is {mean_loss} in epoch {epoch + 1}: {kept}")
        seconds = time.monotonic() - started
        self.epoch += 1
        self.seconds += seconds
        seen = self.steps_per_epoch * recipe.batch_size
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "epochs": recipe.epochs,
            "size": size,
            "learning_rate": self.optimiser.param_groups[0]["lr"],
            "loss": mean_loss,
            "accuracy": float(correct) / seen,
            "images_per_s": seen / seconds,
            "seconds": self.seconds,
        }
        if len(self.held):
            logits = self._logits(self.held.images, size=size)
            held = score(torch.softmax(logits, dim=1), self.held)
            line |= {"held_out_accuracy": held.top1, "held_out_nll": held.nll}
        return line

    def _step(
        self, index: Tensor, epoch: int, step: int, size: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Do one optimiser step on the training images that `index` (B,) names; return loss and logits, detached."""
        recipe = self.recipe
        rate = one_cycle(
            epoch * self.steps_per_epoch + step,
            recipe.epochs * self.steps_per_epoch,
            recipe.warmup,
            recipe.learning_rate,
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = normalise(augment(self.images[index], recipe.augmentation(), generator), self.mean, self.std)
        batch = resize_batch(batch, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            logits = self.network(batch)
        loss = functional.cross_entropy(logits.float(), self.labels[index], label_smoothing=recipe.label_smoothing)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.average.update(self.network)
        return loss.detach(), logits.detach()

    def _logits(self, images: Tensor, size: int | None = None) -> Tensor:
        return compute_logits(
            self.average.network, images, CIFAR10_MEAN, CIFAR10_STD, size=size, autocast=self.autocast
        )

    def _identity(self) -> str:
        """Return what must be the same for a saved state to be gone on from."""
        start = self.init_from.version if self.init_from else None
        return json.dumps({**self.recipe.to_dict(), "init_from": start}, sort_keys=True)

    def _save_state(self) -> None:
        state = {
            "recipe": self._identity(),
            "epoch": self.epoch,
            "seconds": self.seconds,
            "updates": self.average.updates,
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        checkpoint.write_atomically(self.out / "state.pt", buffer.getvalue())

    def _resume(self) -> None:
        """Go on from `state.pt` if the run's folder has one. Raises TrainingError if it belongs to another recipe."""
        path = self.out / "state.pt"
        if not path.exists():
            self._forget_later_metrics()
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        if state["recipe"] != self._identity():
            raise TrainingError(f"{self.out} holds a run with another recipe: give another --out, or remove it")
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.average.updates = state["updates"]
        self.optimiser.load_state_dict(state["optimiser"])
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self._forget_later_metrics()
        log.info("resumed after epoch %d of %d", self.epoch, self.recipe.epochs)

    def _forget_later_metrics(self) -> None:
        """Drop what a crash between writing a line and the state left behind: the epochs that will be repeated."""
        path = self.out / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept = lines[: self.epoch]  # one line an epoch, and whatever is broken off comes last
        checkpoint.write_atomically(path, "".join(f"{line}\n" for line in kept).encode())

    def _finish(self) -> Path:
        """Fit the temperature, measure on the held-out images, and write the checkpoint."""
        # What is measured and shipped is the average after rounding to half precision, computed in float32.
        tensors = checkpoint.half_precision(self.average.network)
        self.average.network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
        self.autocast = None
        temperature, fitted_on = self.fixed_temperature or 1.0, "given"
        measured: tuple[dict[str, Any], ...] = ()
        if len(self.held):
            logits = self._logits(self.held.images)
            if self.fixed_temperature is None:
                temperature = fit_temperature(logits, self.held.labels)
                fitted_on = f"{len(self.held)} held-out training images"
            measured = (score(torch.softmax(logits / temperature, dim=1), self.held).to_dict(),)
        images, probabilities = self._self_test(temperature)
        metadata = Metadata(
            name=f"{self.recipe.arch}-{self.full.name}",
            architecture=self.architecture.to_dict(),
            classes=self.full.classes,
            input_size=self.full.images.shape[-1],
            mean=CIFAR10_MEAN,
            std=CIFAR10_STD,
            temperature=temperature,
            temperature_fitted_on=fitted_on,
            measured=measured,
            dataset={
                "name": self.full.name,
                "fingerprint": self.full.fingerprint(),
                "training_images": len(self.training),
                "held_out_images": len(self.held),
            },
            recipe=self._recipe_done(),
            epochs=self.recipe.epochs,
            seed=self.recipe.seed,
            libraries={
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
            },
            created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        path = self.out / "checkpoint.safetensors"
        checkpoint.save(path, metadata, tensors, images, probabilities)
        return path

    def _recipe_done(self) -> dict[str, Any]:
        """Return the recipe with what the run took, and the run that it started from, if any."""
        done = self.recipe.to_dict() | {"training_seconds": round(self.seconds), "device": self._device_name()}
        if self.init_from is not None:
            done["init_from"] = {"version": self.init_from.version, "recipe": self.init_from.metadata.recipe}
        return done

    def _device_name(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} CPU threads"

    def _self_test(self, temperature: float) -> tuple[Tensor, Tensor]:
        """Choose images whose answers would move if anything were wrong: half at random, half the least certain."""
        pool = self.held if len(self.held) else self.training
        candidates = pool.images[: 50 * SELF_TEST_COUNT]
        probabilities = torch.softmax(self._logits(candidates) / temperature, dim=1)
        confidence = probabilities.amax(dim=1)
        least = confidence.argsort()[: SELF_TEST_COUNT // 2]
        rest = torch.arange(len(candidates))[:: max(1, len(candidates) // (SELF_TEST_COUNT // 2))]
        chosen = torch.cat([least, rest[: SELF_TEST_COUNT // 2]])
        return candidates[chosen], probabilities[chosen]
