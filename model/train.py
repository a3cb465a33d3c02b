"""A training run from its first epoch to its checkpoint: what is counted, shown, saved, and resumed.

To read the training itself, begin with model/resnet.py, the network, and `step` in model/training/learner.py, which
does one batch: augmentation, forward, loss, backward, optimiser. What is here goes around it.
"""

from __future__ import annotations

import logging
import time
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
from model.training.device_memory import check_device_memory
from model.training.distributed import World
from model.training.divergence import check_loss, check_weights
from model.training.epoch_tally import EpochTally
from model.training.errors import Stopped
from model.training.finish import ENDED_EARLY, final_network, recipe_done, write_checkpoint
from model.training.initial_weights import Seen, check_same_classes, held_out_but_seen
from model.training.learner import Learner
from model.training.progress import OnEpoch, Progress, RunProgress
from model.training.recipe import Recipe
from model.training.resume import find_state, run_identity
from model.training.run_folder import RunFolder

log = logging.getLogger(__name__)

AGREE_EVERY_STEPS = 20


class Trainer:
    """One run, and the folder `out` where it leaves its traces.

    With `temperature` given, nothing is fitted and the recipe may hold out no images. With `consume` the dataset's
    memory is taken for the part to train on: who gave it has no use for it any more. `init_from` is a checkpoint to go
    on from, with a recipe of its own, instead of fresh weights; images are normalised as its weights expect them,
    by its mean and std instead of the dataset's. `world` are the processes that share each batch;
    `compiled` runs the network through torch.compile. With `synthetic_self_test` the checkpoint holds none of the
    images. `preset` is what the recipe was made from, for settings.json. `progress` is told (step, steps, figures)
    every `progress_every_s` seconds and at an epoch's end: loss, accuracy, images_per_s, seconds_left; `on_epoch` of
    each epoch's line of metrics. The state is saved every `save_every_s` seconds, after the last epoch, and when
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
        preset: str | None = None,
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
        if recipe.keep_initial and init_from is not None:
            check_same_classes(init_from, dataset.classes)
        self.recipe = recipe
        self.dataset_mean_std = dataset.mean, dataset.std
        if init_from is not None:
            dataset = replace(dataset, mean=init_from.metadata.mean, std=init_from.metadata.std)
        self.folder = RunFolder(out)
        self.temperature = temperature
        self.synthetic_self_test = synthetic_self_test
        self.preset = preset
        self.init_from = init_from
        self.save_every_s = save_every_s
        self.fingerprint = dataset.fingerprint()  # of all images, before any is moved
        self.seen = Seen()
        if init_from is not None:
            self.seen = held_out_but_seen(init_from, dataset, self.fingerprint, recipe.hold_out)
        training, self.held = hold_out(dataset, recipe.hold_out, consume=consume)
        check_device_memory(len(training), training.images.shape[-1], device)
        self.learner = Learner(recipe, training, device=device, init_from=init_from, world=world, compiled=compiled)
        self.world = self.learner.world
        self.device = device
        self.epoch = 0
        self.seconds = 0.0
        self.compile_seconds = 0.0
        self.tally = EpochTally.empty(device)
        self.progress = RunProgress(
            recipe, self.learner.steps_per_epoch, on_step=progress, on_epoch=on_epoch, every_s=progress_every_s
        )
        self.was_finished = False
        self._stop_requested = False
        self.in_epochs = False  # whether steps are being done
        self._counted_until = self._saved_at = time.monotonic()

    def request_stop(self) -> None:
        """Ask `run` to save its state after the present step and raise Stopped; safe in a signal handler."""
        self._stop_requested = True

    @property
    def stops_when_asked(self) -> bool:
        """Whether `request_stop` will be heard soon; where it is not, ending at once loses nothing that was done.

        Unless other processes would wait for this one: then a run that has no epoch left comes to its end.
        """
        return self.in_epochs or self.world.size > 1

    @property
    def training_seconds(self) -> float:
        """How long the steps took that are in the weights, of all attempts."""
        return self.seconds + self.tally.seconds

    def run(self, *, finish: bool = False) -> Path:
        """Train from the last saved state to the end and return the checkpoint's path.

        A finished run's checkpoint stays as it is, with what was recorded in it since; `was_finished` says so. With
        `finish` the checkpoint is made of the saved state as it is, and says after how many epochs; the run can still
        be gone on with, to a checkpoint that takes its place.

        Raises TrainingError if the folder holds another run, or none though there is to `finish` one, or loss or
        weights are no numbers, and Stopped when asked to stop.
        """
        if finish:
            self.folder.require_state()
        with self.folder.taken() if self.world.is_main else nullcontext():
            self._resume()
            self.was_finished = self._is_finished()
            if self.was_finished:
                log.info("this run is finished: nothing is left to do")
                if self.world.is_main:
                    self.folder.forget_metrics_after(self.epoch)  # the report draws them
            else:
                self.folder.check_writable()
                self._run(finish)
        return self.folder.checkpoint

    def _is_finished(self) -> bool:
        """Return what all processes agree on: whether all epochs are done, and their checkpoint is here and intact.

        And is as it is wanted: with the temperature that was given, and without pictures if these must not be in it.
        """
        metadata = self.folder.checkpoint_metadata() if self.epoch == self.recipe.epochs else None
        finished = (
            metadata is not None
            and ENDED_EARLY not in metadata.recipe
            and self.temperature in {None, metadata.temperature}
            and (metadata.has_synthetic_self_test or not self.synthetic_self_test)
        )
        return not self.world.any(not finished, self.device)

    def _run(self, finish: bool) -> None:
        """Do what is left of the run, or only its end."""
        self._tell_of_seen_images()
        if self.world.is_main:
            preset = {} if self.preset is None else {"preset": self.preset}
            self.folder.begin({"recipe": self.recipe.to_dict(), **preset, **self.learner.hardware()})
            self.folder.forget_metrics_after(self.epoch)
        if not finish:
            self._train()
        if self.world.is_main:
            self._finish()
        self.world.barrier()

    def _train(self) -> None:
        """Do the epochs that are left."""
        if self.learner.compiled and self.epoch < self.recipe.epochs:
            self.compile_seconds = self.learner.compile()
        self.progress.begin(self._steps_done())
        self.in_epochs = True
        while self.epoch < self.recipe.epochs:
            line = self._train_epoch()
            if self.world.is_main:
                self.folder.append_metrics(line)
            self.progress.tell_epoch(self._steps_done(), line)
            self._save_and_stop(time.monotonic())
        self.in_epochs = False

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
        if self.progress.is_due(always=last):
            self._count_seconds()
            seen = tally.steps * self.recipe.batch_size
            accuracy = float(tally.correct) * self.world.size / seen
            figures = {"loss": float(loss), "accuracy": accuracy, "images_per_s": seen / tally.seconds}
            self.progress.tell_step(self._steps_done(), figures)
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
            or_else = "" if finished else ", or with --finish makes a checkpoint of it as it is"
            raise Stopped(f"stopped {where}; the same command goes on from {self.folder.path}{or_else}")

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
            recipe=recipe_done(
                self.recipe,
                self.init_from,
                seconds=self.training_seconds,
                hardware=learner.hardware(),
                epochs=self.epoch,
                steps_of_the_next=self.tally.steps,
            ),
            synthetic_self_test=self.synthetic_self_test,
        )

    def _tell_of_seen_images(self) -> None:
        """Tell if the initial weights were, or may have been, trained on images that are held out."""
        if self.init_from is not None and self.world.is_main:
            same_classes = self.init_from.metadata.classes == self.held.classes
            self.seen.tell(len(self.held), same_classes=same_classes, fitted=self.temperature is None)
