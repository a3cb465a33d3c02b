"""Does depth by itself make a network train worse, and do shortcuts mend it? Plain and residual networks side by side.

    python -m benchmarks.degradation --root FOLDER [--archs resnet18,resnet34 --device cuda]

The experiment of He et al. 2015, arXiv:1512.03385, sections 4.1 and 4.2, on a part of CIFAR-10. All networks see the
same images in the same order under the same schedule, and a plain network starts from the very values of its residual
twin. Each network's record is written to --work as soon as it is trained, so that a run that was cut off goes on with
the next network.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import re
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks.degradation_figures import draw_gradients, draw_loss
from benchmarks.records import FOLDER
from model.architecture import ARCHITECTURES, Architecture, Shortcut
from model.checkpoint import write_atomically
from model.cost import count_parameters
from model.data import DataError, Dataset, hold_out, load_cifar10
from model.evaluate import compute_logits
from model.hardware.cores import available_cores
from model.hardware.device import pick_device
from model.hardware.machine import describe
from model.resnet import ResNet
from model.training.augment import augment_batch, draw_augmentation, random_stream
from model.training.optim import one_cycle, parameter_groups
from model.training.recipe import Augmentation
from model.transforms import normalise

ROOT = FOLDER.parent
AUGMENTATION = Augmentation(crop_padding=4, flip=True)
LAST_STEPS = 10  # the steps at the end of an epoch over which gradient norms are averaged


@dataclass(frozen=True)
class Settings:
    """What all networks have in common. `learning_rate` is the peak of one cycle, `warmup` a share of all steps.

    The paper's are batches of 128 and 0.1; here both are halved, so that few epochs are more steps. Momentum and decay
    are the paper's.
    """

    images: int = 10_000
    held_out: int = 2_000
    epochs: int = 5
    batch_size: int = 64
    learning_rate: float = 0.05
    warmup: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 1e-4
    seed: int = 0


def build(arch: str, shortcut: Shortcut, classes: int, seed: int) -> ResNet:
    """Build a network; with shortcut "none", the residual network of the same seed without its shortcuts."""
    torch.manual_seed(seed)
    residual = Architecture(arch, classes).build()
    if shortcut == "identity":
        return residual
    plain = Architecture(arch, classes, shortcut=shortcut).build()
    plain.load_state_dict({k: v for k, v in residual.state_dict().items() if ".shortcut." not in k})
    return plain


def convolutions(network: nn.Module) -> dict[str, nn.Conv2d]:
    """Return the convolutions by name, from the image to the head; a projection comes after its block's others."""
    return {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def gradient_norms(network: nn.Module) -> list[float]:
    """Return the L2 norm of the loss's gradient for the weights of every convolution, after a backward pass.

    The gradient of the loss alone: weight decay is added by the optimiser, later.
    """
    norms = [torch.linalg.vector_norm(module.weight.grad) for module in convolutions(network).values()]
    return torch.stack(norms).tolist()


def mean_norms(recorded: list[list[float]]) -> list[float]:
    """Return each convolution's mean over the recorded steps, to five significant digits."""
    return [float(f"{sum(of_one) / len(of_one):.5g}") for of_one in zip(*recorded, strict=True)]


def train(
    arch: str, shortcut: Shortcut, settings: Settings, *, training: Dataset, held: Dataset, device: torch.device
) -> dict[str, Any]:
    """Train one network and return its record: loss of every step, held-out accuracy and gradient norms by epoch.

    Loss is the mean cross-entropy of the step's batch in nats, accuracy a share of one. Raises ArithmeticError if the
    loss is not finite.
    """
    network = (
        build(arch, shortcut, len(training.classes), settings.seed).to(device).to(memory_format=torch.channels_last)
    )
    groups = parameter_groups(network, settings.weight_decay)
    optimiser = torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum, nesterov=True, foreach=True)
    images, labels = training.images.to(device), training.labels.to(device)
    mean, std = torch.tensor(training.mean, device=device), torch.tensor(training.std, device=device)
    fill = (mean * 255).round().to(torch.uint8)
    per_epoch = len(training) // settings.batch_size
    steps = settings.epochs * per_epoch
    losses: list[float] = []
    accuracies: list[float] = []
    gradients: list[dict[str, Any]] = []
    seconds = 0.0
    for epoch in range(settings.epochs):
        started = time.monotonic()
        order = torch.randperm(len(training), generator=random_stream("order", settings.seed, epoch)).to(device)
        size, seed = images.shape[-1], settings.seed
        draws = draw_augmentation(AUGMENTATION, len(training), size, seed=seed, epoch=epoch).to(device)
        recorded = []
        for number, index in enumerate(torch.split(order[: per_epoch * settings.batch_size], settings.batch_size)):
            for group in optimiser.param_groups:
                group["lr"] = one_cycle(len(losses), steps, settings.warmup, settings.learning_rate)
            batch = normalise(augment_batch(images, index, draws, AUGMENTATION, fill), mean, std)
            loss = functional.cross_entropy(network(batch.contiguous(memory_format=torch.channels_last)), labels[index])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if not losses:
                gradients.append({"steps_done": 0, "norms": mean_norms([gradient_norms(network)])})
            if number >= per_epoch - LAST_STEPS:
                recorded.append(gradient_norms(network))
            optimiser.step()
            losses.append(round(float(loss.detach()), 4))
            if not math.isfinite(losses[-1]):
                raise ArithmeticError(f"{arch}, shortcut {shortcut}: the loss is {losses[-1]} at step {len(losses)}")
        seconds += time.monotonic() - started
        gradients.append({"steps_done": len(losses), "norms": mean_norms(recorded)})
        logits = compute_logits(network, held.images, training.mean, training.std)
        accuracies.append(float((logits.argmax(dim=1) == held.labels).double().mean()))
        now = f"loss {losses[-1]:.3f}, held-out accuracy {accuracies[-1]:.1%}, {len(losses) / seconds:.2f} steps/s"
        print(f"{arch}, shortcut {shortcut}: epoch {epoch + 1} of {settings.epochs}: {now}", flush=True)
    return {
        "arch": arch,
        "shortcut": shortcut,
        "parameters": count_parameters(network),
        "settings": asdict(settings),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "training_seconds": round(seconds, 1),
        "images_per_s": round(len(losses) * settings.batch_size / seconds, 1),
        "loss": losses,
        "held_out_accuracy": accuracies,
        "convolutions": list(convolutions(network)),
        "gradients": gradients,
    }


def kept_record(path: Path, settings: Settings) -> dict[str, Any] | None:
    """Return the record that an earlier run of the same settings left, or None."""
    record: dict[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return record if record and record["settings"] == asdict(settings) else None


def train_and_keep(
    path: Path, arch: str, shortcut: Shortcut, settings: Settings, *, root: Path, device: str, threads: int
) -> dict[str, Any]:
    """Train one network and write its record to `path`, or return the record that is there already."""
    if record := kept_record(path, settings):
        print(f"{arch}, shortcut {shortcut}: done before", flush=True)
        return record
    torch.set_num_threads(threads)
    rest, held = hold_out(load_cifar10(root, train=True), settings.held_out)
    if not settings.batch_size <= settings.images <= len(rest):
        raise DataError(f"--images must be from one batch ({settings.batch_size}) to {len(rest)}")
    training = rest.select(torch.arange(settings.images), "train")
    record = train(arch, shortcut, settings, training=training, held=held, device=pick_device(device))
    write_atomically(path, json.dumps(record).encode())
    return record


def as_text(result: dict[str, Any]) -> str:
    """Return indented JSON with every list of numbers or names on one line."""
    text = json.dumps(result, indent=1)
    return re.sub(r"\[[^][{}]*\]", lambda found: json.dumps(json.loads(found[0])), text) + "\n"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of cifar-10-batches-py [data]")
    parser.add_argument("--archs", default="resnet20,resnet56", help="from shallow to deep [%(default)s]")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N [%(default)s]")
    for name in ("images", "epochs", "batch_size", "learning_rate", "seed"):
        default = getattr(Settings, name)
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=type(default), default=default, help="[%(default)s]")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/degradation", help="finished networks [%(default)s]")
    parser.add_argument("--json", type=Path, default=FOLDER / "training/degradation.json", help="[%(default)s]")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs", help="folder of the two PNG files [%(default)s]")
    arguments = parser.parse_args()
    arguments.archs = arguments.archs.split(",")
    if unknown := [arch for arch in arguments.archs if arch not in ARCHITECTURES]:
        parser.error(f"unknown architecture {unknown[0]!r}: choose of {', '.join(ARCHITECTURES)}")
    return arguments


def main() -> None:
    """Train the networks that have no record yet, the deepest first; write the evidence and draw the figures."""
    arguments = parse_arguments()
    given = {name: value for name, value in vars(arguments).items() if name in Settings.__dataclass_fields__}
    settings = Settings(**given)
    # Convolutions this narrow gain little from a second thread: on a CPU, each core trains a network.
    networks = 2 * len(arguments.archs)
    at_once = min(networks, available_cores()) if arguments.device == "cpu" else 1
    common = {"root": arguments.root, "device": arguments.device, "threads": max(1, available_cores() // at_once)}
    started = time.monotonic()
    with ProcessPoolExecutor(at_once, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = [
            pool.submit(train_and_keep, arguments.work / f"{arch}-{shortcut}.json", arch, shortcut, settings, **common)
            for arch in reversed(arguments.archs)
            for shortcut in ("identity", "none")
        ]
        records = [future.result() for future in futures]
    records.sort(key=lambda record: arguments.archs.index(record["arch"]))
    flags = [f"--{name.replace('_', '-')} {value}" for name, value in given.items()]
    result = {
        "machine": describe(),
        "command": " ".join(["python -m benchmarks.degradation --archs", ",".join(arguments.archs), *flags])
        + f" --device {arguments.device}",
        "networks_at_once": at_once,
        "seconds_of_this_call": round(time.monotonic() - started),
        "networks": records,
    }
    write_atomically(arguments.json, as_text(result).encode())
    draw_loss(records, arguments.figures / "degradation-loss.png")
    draw_gradients(records, arguments.figures / "degradation-gradients.png")
    print(f"{arguments.json}, {arguments.figures}/degradation-loss.png and -gradients.png")


if __name__ == "__main__":
    try:
        main()
    except (DataError, ArithmeticError) as error:
        sys.exit(f"degradation: error: {error}")
