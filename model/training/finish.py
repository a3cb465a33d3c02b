"""The end of a run: from the averaged network to a checkpoint that is calibrated, measured and can test itself."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from model import checkpoint
from model.architecture import Architecture
from model.calibration import Calibration, fit_calibration
from model.checkpoint import Checkpoint
from model.data import Dataset
from model.evaluate import compute_logits, score
from model.metadata import SYNTHETIC, Metadata
from model.training.initial_weights import Seen
from model.training.interpolate import STATISTICS_IMAGES, interpolate, reestimate_batch_norm
from model.training.learner import Learner
from model.training.recipe import Recipe, lineage
from model.training.self_test import choose_self_test

log = logging.getLogger(__name__)

# What the recipe in a checkpoint has besides if the run has not come to its end: how many "epochs" "of" how many are
# done.
ENDED_EARLY = "ended_early"


def final_network(learner: Learner, init_from: Checkpoint | None, keep_initial: float) -> nn.Module:
    """Return the averaged network, with a share `keep_initial` of the weights that it started from."""
    trained = learner.average.network
    if init_from is None or not keep_initial:
        return trained
    log.info("averaging with the initial weights, of which %g is kept", keep_initial)
    network = learner.architecture.build().to(learner.device)  # without what processes share
    network.load_state_dict(trained.state_dict())
    interpolate(network, init_from.tensors, keep_initial)
    training = learner.training
    reestimate_batch_norm(network, training.images[:STATISTICS_IMAGES], training.mean, training.std)
    return network.eval()


def recipe_done(
    recipe: Recipe,
    init_from: Checkpoint | None,
    *,
    seconds: float,
    hardware: Mapping[str, str],
    epochs: int,
    steps_of_the_next: int,
) -> dict[str, Any]:
    """Return what a checkpoint notes of the recipe.

    That is the recipe, what the run took on which hardware, the runs that it started from and, if it is ended before
    its last epoch, how many `epochs` are done, and how many steps of the next one. That is logged as a warning, too.
    """
    done = recipe.to_dict() | {"training_seconds": round(seconds), **hardware}
    if epochs < recipe.epochs:
        done[ENDED_EARLY] = {"epochs": epochs, "of": recipe.epochs, "steps_of_the_next": steps_of_the_next}
        log.warning(
            "finishing after %d of %d epochs and %d steps, before the learning rate has come down: "
            "a whole run of fewer epochs is likely to be better",
            *done[ENDED_EARLY].values(),
        )
    if init_from is not None:
        done["init_from"] = lineage(init_from.version, init_from.metadata.recipe)
    return done


def write_checkpoint(
    path: Path,
    network: nn.Module,
    *,
    architecture: Architecture,
    fingerprint: str,
    training: Dataset,
    held: Dataset,
    seen: Seen,
    temperature: float | None,
    recipe: dict[str, Any],
    synthetic_self_test: bool = False,
) -> None:
    """Fit the calibration on the held-out images, measure on them, and write the checkpoint.

    `fingerprint` is the whole training set's, `training` and `held` are its two parts; `seen` is how many of the
    latter the initial weights were trained on, which the checkpoint says. With `temperature` given,
    nothing is fitted, and `held` may be empty. `network` is rounded to half precision in place: what is measured is
    what ships. With `synthetic_self_test` no picture is in the checkpoint: it tests itself by images made for that.
    """
    tensors = checkpoint.tensors_to_store(network)
    network.load_state_dict({k: v.float() for k, v in tensors.items()}, strict=False)
    calibration, fitted_on = Calibration(temperature or 1.0), "given"
    measured: tuple[dict[str, Any], ...] = ()
    if len(held):
        logits = compute_logits(network, held.images, training.mean, training.std)
        if temperature is None:
            calibration = fit_calibration(logits, held.labels)
            fitted_on = f"{len(held)} held-out training images{seen.in_words()}"
        measured = (score(calibration.probabilities(logits), held).to_dict(),)
    images, probabilities = choose_self_test(network, held, training, calibration, synthetic=synthetic_self_test)
    metadata = Metadata(
        name=f"{architecture.arch}-{training.name}",
        architecture=architecture.to_dict(),
        classes=training.classes,
        input_size=training.images.shape[-1],
        mean=training.mean,
        std=training.std,
        temperature=calibration.temperature,
        calibration_exponent=calibration.exponent,
        temperature_fitted_on=fitted_on,
        measured=measured,
        dataset={
            "name": training.name,
            "fingerprint": fingerprint,
            "training_images": len(training),
            "held_out_images": len(held),
            **seen.never_trained_on(len(held)),
            **({"self_test": SYNTHETIC} if synthetic_self_test else {}),
        },
        recipe=recipe,
        epochs=recipe[ENDED_EARLY]["epochs"] if ENDED_EARLY in recipe else sum(count for _, count in recipe["phases"]),
        seed=recipe["seed"],
        libraries={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    checkpoint.save(path, metadata, tensors, images.numpy(), probabilities.numpy())
    if not synthetic_self_test:
        log.info(
            "the checkpoint holds %d of the pictures, to test itself by: "
            "the same command with --synthetic-self-test puts made ones in their place",
            len(images),
        )
