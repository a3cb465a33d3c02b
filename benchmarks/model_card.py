"""Writes weights/README.md, the model card, from the shipped checkpoint's metadata.

python -m benchmarks.model_card
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.nn import functional

from app.settings import SHIPPED_WEIGHTS
from model import checkpoint
from model.checkpoint import Checkpoint
from model.cost import count_macs, count_parameters
from model.evaluate import compute_logits
from model.training.recipe import earlier_runs

OOD_IMAGES = 1000


def ood_images() -> dict[str, torch.Tensor]:
    """Return by name pictures of none of the classes, uint8 (N, 3, 32, 32): noise, blobs of colour, single colours."""
    generator = torch.Generator().manual_seed(0)

    def uniform(size: int) -> torch.Tensor:
        return torch.rand(OOD_IMAGES, 3, size, size, generator=generator)

    blobs = functional.interpolate(uniform(4), size=(32, 32), mode="bicubic").clamp(0, 1)
    pictures = {
        "pixel noise": uniform(32),
        "soft blobs of colour": blobs,
        "one flat colour": uniform(1).repeat(1, 1, 32, 32),
    }
    return {name: (images * 255).to(torch.uint8) for name, images in pictures.items()}


def confidence_rows(source: Checkpoint) -> list[str]:
    """Return a table row for each kind of `ood_images`: the network's confidence, of which none is right."""
    metadata = source.metadata
    network = source.network()
    rows = []
    for name, images in ood_images().items():
        logits = compute_logits(network, images, metadata.mean, metadata.std)
        top, winner = metadata.calibration.probabilities(logits).max(dim=1)
        usual = metadata.classes[int(winner.mode().values)]
        rows.append(f"| {name} | {float(top.mean()):.2f} | {float((top > 0.9).double().mean()):.1%} | {usual} |")
    return rows


def scores_row(scores: dict[str, Any]) -> str:
    """Return a table row of one measurement."""
    return f"| {scores['split']} | {scores['images']:,} | {scores['top1']:.2%} | {scores['nll']:.4f} | {scores['ece']:.2%} |"


def robustness_section(scores: dict[str, Any]) -> str:
    """Return the section on pictures as people send them, or "" if that was not measured."""
    table = scores.get("robustness")
    if not table:
        return ""
    rows = "\n".join(
        f"| {name} | {row['top1']:.2%} | {100 * row['top1_change']:+.2f} | {row['nll']:.4f} | {row['ece']:.2%} |"
        for name, row in table.items()
    )
    return f"""
## On what people send

The same {scores["images"]:,} images, changed by Pillow: saved as JPEG (chroma at half the resolution) or WebP at a quality, made grey, or
enlarged four times (bicubic) and brought back by the service's own resize.

| sent as | top-1 | change, points | negative log-likelihood (nats) | calibration error (15 bins) |
|---|---|---|---|---|
{rows}
"""


def runs_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipes of the runs that made a checkpoint, the first one first."""
    return [*(run["recipe"] for run in reversed(earlier_runs(recipe))), recipe]


def shared(runs: list[dict[str, Any]], name: str) -> object:
    """Return the value of `name` in all runs. Raises ValueError if they differ: then it belongs into `run_row`."""
    first, *others = (one[name] for one in runs)
    if any(other != first for other in others):
        raise ValueError(f"the runs differ in {name}")
    return first


def run_row(number: int, recipe: dict[str, Any]) -> str:
    """Return a table row of one run."""
    sent = "".join(f", {recipe[name]:.0%} {name}" for name in ("jpeg", "greyscale", "rescale") if recipe.get(name))
    averaged = ""
    if kept := recipe.get("keep_initial"):
        averaged = f"; averaged with the network of the run before, {kept:.0%} of its weights (WiSE-FT), then batch norm's statistics taken anew"
    phases = ", then ".join(f"{epochs} at {size} x {size}" for size, epochs in recipe["phases"])
    return (
        f"| run {number} | epochs: {phases} pixels; one-cycle to {recipe['learning_rate']} with {recipe['warmup']:.0%} warm-up; "
        f"crop after {recipe['crop_padding']} reflected pixels, flip, cutout {recipe['cutout']}{sent}; "
        f"label smoothing {recipe['label_smoothing']}{averaged}; seed {recipe['seed']}; {recipe['device']}, {recipe['training_seconds'] / 60:.0f} minutes |"
    )


def render(source: Checkpoint) -> str:
    """Return the card."""
    metadata = source.metadata
    network = source.network()
    recipes = runs_of(metadata.recipe)
    runs = chr(10).join(run_row(number, one) for number, one in enumerate(recipes, 1))
    same = partial(shared, recipes)
    test = next(one for one in metadata.measured if one["split"] == "cifar10 test")
    per_class = "\n".join(f"| {name} | {share:.1%} |" for name, share in test["per_class"].items())
    size = metadata.input_size
    return f"""# {metadata.name}, version {source.version}

`{source.path.name}`: a ResNet-18 with the CIFAR stem (3x3 convolution, stride 1, no pooling), trained on CIFAR-10 by
`resnet train` of this repository. {count_parameters(network) / 1e6:.2f} M parameters, {count_macs(network, size) / 1e9:.2f} GMAC an image; convolution and linear weights in
float16, the rest in float32. SHA-256 `{source.sha256}`.

This file is written by `python -m benchmarks.model_card` from the checkpoint's own metadata (`make evaluate` measures
it again; `GET /model` shows it too).

## How good it is

| images | number | top-1 | negative log-likelihood (nats) | calibration error (15 bins) |
|---|---|---|---|---|
{chr(10).join(scores_row(one) for one in metadata.measured)}

No test-time augmentation. The weights are the moving average at the end of the last epoch. No test image was trained on,
fitted the temperature or chose an epoch. But the test set was measured after several of the runs below, not after the last
one alone, and that another one should follow was decided knowing those figures: the ones above may be a little better than
on pictures that nobody has looked at. Probabilities are
softmax(-s^g / T) with s = -log softmax(logits), g = {metadata.calibration_exponent:.4f} and T = {metadata.temperature:.4f}, fitted on {metadata.temperature_fitted_on}.

| class | right on the test set |
|---|---|
{per_class}
{robustness_section(test)}
## How it was made

| | |
|---|---|
| data | {metadata.dataset["training_images"]:,} CIFAR-10 training images; {metadata.dataset["held_out_images"]:,} more, stratified, held out for the temperature (fingerprint of all `{metadata.dataset["fingerprint"][:16]}...`) |
{runs}
| every run | SGD, Nesterov momentum {same("momentum")}, batch {same("batch_size")}, weight decay {same("weight_decay")} (not on biases and batch norm), weight average {same("ema_decay")} |
| libraries | {", ".join(f"{name} {version}" for name, version in metadata.libraries.items())} |
| finished | {metadata.created} |

`make train` runs it again, each run going on from the one before; what each epoch measured is in
[benchmarks/training/shipped.json](../benchmarks/training/shipped.json). The minutes count the work of other programs on the
same two cores, too.

## What it is not for

It knows ten classes ({", ".join(metadata.classes)}) and pictures of {size} x {size} pixels, one object in the middle of each.
There is no "none of these": a picture of something else still gets one of the ten, at times with confidence. Larger photos are
resized to {size} pixels on the shorter side and cropped to the centre, which is not how CIFAR-10's pictures were made; expect
less than the figures above. Calibration holds for pictures like CIFAR-10's only. How sure it is of what cannot be right,
{OOD_IMAGES:,} pictures each:

| pictures of nothing | mean top probability | above 0.9 | most often called |
|---|---|---|---|
{chr(10).join(confidence_rows(source))}
"""


def main() -> None:
    """Write the card beside the checkpoint."""
    (SHIPPED_WEIGHTS.parent / "README.md").write_text(render(checkpoint.load(SHIPPED_WEIGHTS)))


if __name__ == "__main__":
    main()
