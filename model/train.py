"""A training run from its first epoch to its checkpoint: what is counted, shown, saved, and resumed.

To read the training itself, begin with model/resnet.py, the network, and `step` in model/training/learner.py, which
does one batch: augmentation, forward, loss, backward, optimiser. What is here goes around it.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.checkpoint import Checkpoint
from model.data import Dataset, hold_out
from model.evaluate import score
from model.training.checks import check_recipe
from model.training.distributed import World
from model.training.divergence import check_loss, check_weights
from model.training.epoch_tally import EpochTally
from model.training.errors import Stopped, TrainingError
from model.training.finish import final_network, write_checkpoint
from model.training.initial_weights import Seen, held_out_but_seen
from model.training.learner import Learner
from model.training.recipe import Recipe, lineage
from model.training.resume import find_state, run_identity
from model.training.run_folder import RunFolder
from model.training.time_left import TimeLeft, duration_in_words

log = logging.getLogger(__name__)

Progress = Callable[[int, int, dict[str, float]], None]
OnEpoch = Callable[[dict[str, Any]], None]

AGREE_EVERY_STEPS = 20


class Trainer:
    """One run, and the folder `out` where it leaves its traces.

    With `temperature` given, nothing is fitted and the recipe may hold out no images. With `consume` the dataset's
    memory is taken for the part to train on: who gave it has no use for it any more. `init_from` is a checkpoint to go
    on from, with a recipe of its own, instead of fresh weights; images are normalised as its weights expect them,
    by its mean and std instead of the dataset's. `world` are the processes that share each batch;
    `compiled` runs the network through torch.compile. With `synthetic_self_test` the checkpoint holds none of the
    images. `progress` is told (step, steps, figures) every
    `progress_every_s` seconds and at an epoch's end: loss, accuracy, images_per_s, seconds_left; `on_epoch` of each
    epoch's line of metrics. The state is saved every `save_every_s` seconds, after the last epoch, and when
    `request_stop` is called: an epoch on a GPU may take less time than to write it.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        out: Path,
        *,
        device: torch.device,
        temperature: float | None = None,
        consume: bool = False,
        init_from: Checkpoint | None = None,
        world: World | None = None,
        compiled: bool = False,
        synthetic_self_test: bool = False,
        progress: Progress | None = None,
        on_epoch: OnEpoch | None = None,
        progress_every_s: float = 0.5,
        save_every_s: float = 120.0,
    ) -> None:
        check_recipe(
            recipe,
            dataset.images.shape[-1],
            temperature=temperature,
            has_initial=init_from is not None,
            processes=world.size if world else 1,
        )
        if recipe.keep_initial and init_from is not None and init_from.metadata.classes != dataset.classes:
            raise TrainingError("--keep-initial needs --init-from, a checkpoint of the same classes")
        self.recipe = recipe
        self.dataset_mean_std = dataset.mean, dataset.std
        if init_from is not None:
            dataset = replace(dataset, mean=init_from.metadata.mean, std=init_from.metadata.std)
        self.folder = RunFolder(out)
        self.temperature = temperature
        self.synthetic_self_test = synthetic_self_test
        self.init_from = init_from
        self.progress, self.on_epoch = progress, on_epoch
        self.progress_every_s, self.save_every_s = progress_every_s, save_every_s
        self.fingerprint = dataset.fingerprint()  # of all images, before any is moved
        self.seen = Seen()
        if init_from is not None:
            self.seen = held_out_but_seen(init_from, dataset, self.fingerprint, recipe.hold_out)
        training, self.held = hold_out(dataset, recipe.hold_out, consume=consume)
        self.learner = Learner(recipe, training, device=device, init_from=init_from, world=world, compiled=compiled)
        self.world = self.learner.world
        self.device = device
        self.epoch = 0
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self.tally = EpochTally.empty(device)
        self.time_left = TimeLeft(recipe, self.learner.steps_per_epoch)
        self.was_finished = False
        self._stop_requested = False
        self.in_epochs = False  # whether steps are being done
        self._counted_until = self._saved_at = time.monotonic()
        self._told_at = -math.inf

    def request_stop(self) -> None:
        """Ask `run` to save its state after the present step and raise Stopped; safe in a signal handler."""
        self._stop_requested = True

    @property
    def stops_when_asked(self) -> bool:
        """Whether `request_stop` will be heard soon; where it is not, ending at once loses nothing that was done.

        Unless other processes would wait for this one: then a run that has no epoch left comes to its end.
        """
        return self.in_epochs or self.world.size > 1

    def run(self) -> Path:
        """Train from the last saved state to the end and return the checkpoint's path.

        A finished run's checkpoint stays as it is, with what was recorded in it since; `was_finished` says so.

        Raises TrainingError if the folder holds another run, or loss or weights are no numbers, and Stopped when asked
        to stop.
        """
        with self.folder.taken() if self.world.is_main else nullcontext():
            self._resume()
            self.was_finished = self._is_finished()
            if self.was_finished:
                log.info("this run is finished: nothing is left to do")
            else:
                self.folder.check_writable()
                self._run()
        return self.folder.checkpoint

    def _is_finished(self) -> bool:
        """Return what all processes agree on: whether all epochs are done, and their checkpoint is here and intact.

        And is as it is wanted: with the temperature that was given, and without pictures if these must not be in it.
        """
        metadata = self.folder.checkpoint_metadata() if self.epoch == self.recipe.epochs else None
        finished = (
            metadata is not None
            and self.temperature in {None, metadata.temperature}
            and (metadata.has_synthetic_self_test or not self.synthetic_self_test)
        )
        return not self.world.any(not finished, self.device)

    def _run(self) -> None:
        """Do what is left of the run."""
        self._tell_of_seen_images()
        if self.world.is_main:
            self.folder.begin({"recipe": self.recipe.to_dict(), **self.learner.hardware()})
            self.folder.forget_metrics_after(self.epoch)
        if self.learner.compiled and self.epoch < self.recipe.epochs:
            self.compile_seconds = self.learner.compile()
        self.time_left.begin(self._steps_done(), time.monotonic())
        self.in_epochs = True
        while self.epoch < self.recipe.epochs:
            line = self._train_epoch()
            if self.world.is_main:
                self.folder.append_metrics(line)
            left = self._seconds_left()
            figures = " ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in line.items())
            log.info("%s%s", figures, f", about {duration_in_words(left)} left" if left else "")
            if self.on_epoch is not None:
                self.on_epoch(line)
            self._save_and_stop(time.monotonic())
        self.in_epochs = False
        if self.world.is_main:
            self._finish()
        self.world.barrier()

    def _train_epoch(self) -> dict[str, Any]:
        """Do what is left of the present epoch and return its line of metrics."""
        learner, tally = self.learner, self.tally
        order, draws = learner.draw_epoch(self.epoch)
        learner.network.train()
        self._counted_until = time.monotonic()
        while tally.steps < learner.steps_per_epoch:
            loss, correct = learner.step(self.epoch, tally.steps, order, draws)
            tally.add(loss, correct)
            self._after_step(loss)
        self._count_seconds()
        return self._end_epoch()

    def _steps_done(self) -> int:
        return self.epoch * self.learner.steps_per_epoch + self.tally.steps

    def _seconds_left(self) -> float | None:
        """Return about how long the steps that are left will take, None if this process has not done one yet."""
        self.time_left.note(self._steps_done(), time.monotonic())
        return self.time_left.seconds()

    def _count_seconds(self) -> None:
        """Add the time since the last count to the epoch's. A GPU is waited for: its steps were only queued."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.monotonic()
        self.tally.seconds += now - self._counted_until
        self._counted_until = now

    def _end_epoch(self) -> dict[str, Any]:
        recipe, tally, size = self.recipe, self.tally, self.recipe.size_of(self.epoch)
        seen = tally.steps * recipe.batch_size
        mean_loss = tally.mean_loss(self.world)
        check_loss(mean_loss, self.epoch + 1, self.folder)
        self.epoch += 1
        self.seconds += tally.seconds
        line: dict[str, Any] = {
            "epoch": self.epoch,
            "epochs": recipe.epochs,
            "size": size,
            "learning_rate": self.learner.optimiser.param_groups[0]["lr"],
            "loss": mean_loss,
            "accuracy": tally.correct_of_all(self.world) / seen,
            "images_per_s": seen / tally.seconds,
            "seconds": self.seconds,
        }
        if len(self.held):
            mine = torch.arange(len(self.held)).tensor_split(self.world.size)[self.world.rank]
            logits = self.world.all_gather(self.learner.logits(self.held.images[mine], size))
            held = score(torch.softmax(logits, dim=1), self.held)
            line |= {"held_out_accuracy": held.top1, "held_out_nll": held.nll}
        self.tally = EpochTally.empty(self.device)
        return line

    def _after_step(self, loss: Tensor) -> None:
        """Tell progress, save the state and stop, each where it is time for it."""
        now, tally = time.monotonic(), self.tally
        last = tally.steps == self.learner.steps_per_epoch
        if self.progress and (last or now - self._told_at >= self.progress_every_s):
            self._told_at = now
            self._count_seconds()
            seen = tally.steps * self.recipe.batch_size
            accuracy = float(tally.correct) * self.world.size / seen
            figures = {"loss": float(loss), "accuracy": accuracy, "images_per_s": seen / tally.seconds}
            figures["seconds_left"] = self._seconds_left() or 0.0
            self.progress(self._steps_done(), self.learner.steps, figures)
        on_gpus = self.world.size > 1 and self.device.type == "cuda"
        if on_gpus and tally.steps % AGREE_EVERY_STEPS and not last:
            return  # processes save and stop together; asking each other at every step would cost too much
        self._save_and_stop(now)

    def _save_and_stop(self, now: float) -> None:
        """Save the state and stop, each where it is time for it; what the last epoch leaves is always saved.

        All processes come here together and agree on both. Raises Stopped, and TrainingError for a state that is not
        worth saving.
        """
        finished = self.epoch == self.recipe.epochs
        stop = self.world.any(self._stop_requested, self.device)
        within = self.tally.steps > 0
        if finished or stop or self._is_time_to_save(now):
            if within:
                check_loss(self.tally.mean_loss(self.world), self.epoch + 1, self.folder)
                self._count_seconds()
            check_weights(self.learner, self.epoch + within, self.folder, self.world)
            self._save_state()
            self._counted_until = time.monotonic()
        if stop:
            where = f"in epoch {self.epoch + 1}" if within else f"after epoch {self.epoch}"
            raise Stopped(f"stopped {where}; the same command goes on from {self.folder.path}")

    def _is_time_to_save(self, now: float) -> bool:
        """Return what all processes agree on: whether one of them has not saved for long enough."""
        return self.world.any(now - self._saved_at >= self.save_every_s, self.device)

    @cached_property
    def _identity(self) -> str:
        """What must be the same for a saved state to be gone on from."""
        mean_std = self.held.mean, self.held.std
        normalisation = None if mean_std == self.dataset_mean_std else mean_std  # else the images say it
        return run_identity(self.recipe, self.init_from, self.fingerprint, normalisation)

    def _save_state(self) -> None:
        """Save what to go on from."""
        self._saved_at = time.monotonic()
        tally = self.tally.state_dict(self.world)
        if self.world.is_main:
            done = {"recipe": self._identity, "epoch": self.epoch, "seconds": self.seconds, "tally": tally}
            self.folder.save_state(done | self.learner.state_dict())

    def _resume(self) -> None:
        """Go on from the folder's state, if there is one. Raises TrainingError as `find_state` does."""
        state = find_state(self.folder, self._identity, self.init_from, world=self.world, device=self.device)
        if state is None:
            return
        self.learner.load_state_dict(state)
        self.epoch, self.seconds = state["epoch"], state["seconds"]
        self.tally = EpochTally.from_state(state["tally"], self.world)
        log.info("resumed after epoch %d of %d and %d steps", self.epoch, self.recipe.epochs, self.tally.steps)

    def _finish(self) -> None:
        """Write the checkpoint of the averaged network."""
        learner = self.learner
        self._tell_of_seen_images()  # once more, where the figures are
        write_checkpoint(
            self.folder.checkpoint,
            final_network(learner, self.init_from, self.recipe.keep_initial),
            architecture=learner.architecture,
            fingerprint=self.fingerprint,
            training=learner.training,
            held=self.held,
            seen=self.seen,
            temperature=self.temperature,
            recipe=self._recipe_done(),
            synthetic_self_test=self.synthetic_self_test,
        )

    def _tell_of_seen_images(self) -> None:
        """Tell if the initial weights were, or may have been, trained on images that are held out."""
        if self.init_from is not None and self.world.is_main:
            same_classes = self.init_from.metadata.classes == self.held.classes
            self.seen.tell(len(self.held), same_classes=same_classes, fitted=self.temperature is None)

    def _recipe_done(self) -> dict[str, Any]:
        """Return the recipe with what the run took, and the runs that it started from, if any."""
        done = self.recipe.to_dict() | {"training_seconds": round(self.seconds), **self.learner.hardware()}
        if self.init_from is not None:
            done["init_from"] = lineage(self.init_from.version, self.init_from.metadata.recipe)
        return done
