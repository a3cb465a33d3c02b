"""Training that is stopped or killed: what it goes on from, when it saves, and what it refuses to go on with."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import checkpoint
from model.data import Dataset
from model.train import Trainer
from model.training.distributed import World
from model.training.epoch_tally import EpochTally
from model.training.errors import Stopped, TrainingError
from model.training.learner import Learner
from tests.unit.model.runs import RECIPE, epochs_in, everything_stored, trainer

pytestmark = pytest.mark.usefixtures("narrow_stages")


class Interrupted(RuntimeError):
    pass


def interrupt_in_epoch(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make trainers do the work of epoch `number` and fail before they have saved it."""
    complete = Trainer._train_epoch

    def interrupted(self: Trainer) -> dict[str, Any]:
        line = complete(self)
        if self.epoch == number:
            raise Interrupted
        return line

    monkeypatch.setattr(Trainer, "_train_epoch", interrupted)


@pytest.mark.parametrize("save_every_s", [0.0, math.inf])
def test_resumed_run_equals_an_undisturbed_one(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, save_every_s: float
) -> None:
    with monkeypatch.context() as patch:
        interrupt_in_epoch(2, patch)
        with pytest.raises(Interrupted):
            trainer(tmp_path, save_every_s=save_every_s).run()
    assert (tmp_path / "state.pt").exists() == (save_every_s == 0)
    assert not (tmp_path / "checkpoint.safetensors").exists()
    resumed = trainer(tmp_path)
    torch.manual_seed(1234)  # random numbers come from (seed, epoch) alone
    resumed.run()
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    actual = everything_stored(checkpoint.load(tmp_path / "checkpoint.safetensors"))
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    assert epochs_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("fast", [True, False])
def test_a_run_goes_on_in_the_precision_that_it_was_begun_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool
) -> None:
    """Which one is quicker is measured on some processors, where it may turn out otherwise the next time."""
    interrupt_in_epoch(2, monkeypatch)
    monkeypatch.setattr("model.training.learner.has_fast_bfloat16", lambda _device: fast)
    with pytest.raises(Interrupted):
        trainer(tmp_path, save_every_s=0.0).run()
    monkeypatch.setattr("model.training.learner.has_fast_bfloat16", lambda _device: not fast)
    resumed = trainer(tmp_path)
    resumed._resume()
    assert resumed.learner.autocast == (torch.bfloat16 if fast else None)


def test_a_state_that_does_not_say_its_precision_goes_on_in_todays(tmp_path: Path, undisturbed: Path) -> None:
    state = torch.load(undisturbed / "state.pt", weights_only=True)
    del state["autocast"]
    torch.save(state, tmp_path / "state.pt")
    resumed = trainer(tmp_path)
    resumed.learner.autocast = torch.bfloat16
    resumed._resume()
    assert (resumed.epoch, resumed.learner.autocast) == (3, torch.bfloat16)


@pytest.mark.parametrize("step", [1, 2, 3, 5])
def test_run_that_was_asked_to_stop_goes_on_in_the_middle_of_an_epoch(
    tmp_path: Path, undisturbed: Path, step: int
) -> None:
    def stop(done: int, *_: object) -> None:
        if done == step:
            stopped.request_stop()

    stopped = trainer(tmp_path, progress=stop, progress_every_s=0.0)
    with pytest.raises(Stopped, match="the same command goes on"):
        stopped.run()
    trainer(tmp_path).run()
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    actual = everything_stored(checkpoint.load(tmp_path / "checkpoint.safetensors"))
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []
    lines, undisturbed_lines = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (tmp_path, undisturbed)
    )
    for timing in ("seconds", "images_per_s"):
        for line in lines + undisturbed_lines:
            del line[timing]
    assert lines == undisturbed_lines


def test_state_is_saved_while_an_epoch_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_in_epoch(1, monkeypatch)
    with pytest.raises(Interrupted):
        trainer(tmp_path, save_every_s=0.0).run()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["tally"]["steps"]) == (0, 3)


def saved_positions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Keep where in the run a state was saved: epochs done, and steps of the next one."""
    positions: list[tuple[int, int]] = []
    save_state = Trainer._save_state

    def noted(self: Trainer) -> None:
        positions.append((self.epoch, self.tally.steps))
        save_state(self)

    monkeypatch.setattr(Trainer, "_save_state", noted)
    return positions


def test_epochs_that_end_soon_after_a_state_was_saved_do_not_save_another_but_the_last_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saved_positions(monkeypatch)
    hashed: list[int] = []
    fingerprint = Dataset.fingerprint
    monkeypatch.setattr(Dataset, "fingerprint", lambda self: hashed.append(1) or fingerprint(self))
    trainer(tmp_path, save_every_s=math.inf).run()
    assert saved == [(3, 0)]
    assert len(hashed) == 1  # for the state and for the checkpoint


def test_an_epochs_end_saves_a_state_that_is_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("model.train.time.monotonic", lambda: clock[0])
    saved = saved_positions(monkeypatch)
    step = Learner.step

    def second(self: Learner, *arguments: Any) -> Any:
        clock[0] += 1
        return step(self, *arguments)

    def minutes(_line: dict[str, Any]) -> None:
        clock[0] += 100  # two of them are longer than the time between two states

    monkeypatch.setattr(Learner, "step", second)
    trainer(tmp_path, on_epoch=minutes, save_every_s=150.0).run()
    assert saved == [(2, 0), (3, 0)]


def test_who_asks_to_stop_between_two_epochs_need_not_wait_for_a_step(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = saved_positions(monkeypatch)
    stopped = trainer(tmp_path, on_epoch=lambda _line: stopped.request_stop())
    with pytest.raises(Stopped, match="stopped after epoch 1; the same command goes on"):
        stopped.run()
    assert saved == [(1, 0)]
    resumed = checkpoint.load(trainer(tmp_path).run())
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    assert all(torch.equal(value, expected[name]) for name, value in everything_stored(resumed).items())
    assert epochs_in(tmp_path) == [1, 2, 3]


def test_who_asks_to_stop_after_the_last_epoch_need_not_wait_for_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(line: dict[str, Any]) -> None:
        if line["epoch"] == 3:
            stopped.request_stop()

    with monkeypatch.context() as patch:
        patch.setattr("model.train.write_checkpoint", lambda *_, **__: pytest.fail("it is calibrated"))
        stopped = trainer(tmp_path, on_epoch=ask)
        with pytest.raises(Stopped, match="stopped after epoch 3; the same command goes on"):
            stopped.run()
    trainer(tmp_path).run()
    assert epochs_in(tmp_path) == [1, 2, 3]


@pytest.mark.parametrize("epoch", [1, 2])
def test_crash_between_metrics_and_state_leaves_one_line_an_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    save_state = Trainer._save_state

    def crash(self: Trainer) -> None:
        if self.epoch == epoch:
            with self.folder.metrics.open("a") as file:
                file.write('{"epoch": 9, "lo')  # a line that was being written
            raise Interrupted
        save_state(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save_state", crash)
        with pytest.raises(Interrupted):
            trainer(tmp_path, save_every_s=0.0).run()
    trainer(tmp_path).run()
    assert epochs_in(tmp_path) == [1, 2, 3]


def test_loss_that_is_not_a_number_stops_and_keeps_the_last_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = Trainer._train_epoch

    def poisoned(self: Trainer) -> dict[str, Any]:
        if self.epoch == 1:
            self.learner.network.head.bias.data.fill_(float("nan"))
        return complete(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", poisoned)
        with pytest.raises(TrainingError, match="the loss is nan in epoch 2: the last good state is kept"):
            trainer(tmp_path, save_every_s=0.0).run()
    assert not (tmp_path / "checkpoint.safetensors").exists()
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state["epoch"] == 1
    assert all(value.isfinite().all() for value in state["network"].values())
    assert all(value.isfinite().all() for value in state["average"].values())
    trainer(tmp_path).run()
    assert epochs_in(tmp_path) == [1, 2, 3]


def test_processes_that_find_different_states_are_refused(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would train a network of its own and average it with the others'."""
    monkeypatch.setattr(World, "all_gather", lambda _, part: torch.cat([part, part + 1]))
    with pytest.raises(TrainingError, match="must be shared"):
        trainer(undisturbed).run()


@pytest.fixture
def one_of_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trainer:
    """A run that shares its batches with another process, which says what this one does, and is to stop."""
    monkeypatch.setattr(World, "any", lambda _, flag, _device: flag)
    monkeypatch.setattr(World, "all_reduce_sum_", lambda _, value: value)
    running = trainer(tmp_path)
    running.world = World(rank=0, size=2)
    running.request_stop()
    return running


def test_processes_on_gpus_stop_together_also_in_epochs_of_few_steps(
    one_of_two: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_of_two, "device", torch.device("cuda"))
    monkeypatch.setattr(one_of_two, "_count_seconds", lambda: None)  # it waits for the device
    for steps in range(1, one_of_two.learner.steps_per_epoch):
        one_of_two.tally.steps = steps
        one_of_two._after_step(torch.tensor(1.0))  # too dear to ask all of them each time
    one_of_two.tally.steps = one_of_two.learner.steps_per_epoch
    with pytest.raises(Stopped):
        one_of_two._after_step(torch.tensor(1.0))


def test_processes_on_cpus_stop_at_the_next_step(one_of_two: Trainer) -> None:
    """Twenty steps would take a minute, and torchrun kills after half of one."""
    one_of_two.tally.steps = 1
    with pytest.raises(Stopped):
        one_of_two._after_step(torch.tensor(1.0))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_an_epochs_tally_goes_on_in_more_or_fewer_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    """A batch's loss is the mean of its processes' losses, what was right in it the sum of what was in each."""
    monkeypatch.setattr(World, "all_reduce_sum_", lambda world, value: value * world.size)  # all are alike
    monkeypatch.setattr(World, "all_gather", lambda _, part: part)
    saving, resuming = trainer(tmp_path), trainer(tmp_path)
    saving.world, resuming.world = World(size=before), World(rank=after - 1, size=after)
    saving.folder.begin({})
    saving.tally = EpochTally(torch.tensor(3.0), torch.tensor(8.0), steps=2)
    saving._save_state()
    resuming._resume()
    assert resuming.tally == EpochTally(torch.tensor(3.0), torch.tensor(8.0 * before / after), steps=2)


@pytest.mark.parametrize("asked", [True, False])
def test_a_loss_that_is_no_number_is_never_saved_within_an_epoch(tmp_path: Path, asked: bool) -> None:
    def poison(done: int, *_: object) -> None:
        if done == 4:
            running.learner.network.head.bias.data.fill_(float("nan"))
        elif done == 5 and asked:
            running.request_stop()

    running = trainer(tmp_path, progress=poison, progress_every_s=0.0, save_every_s=math.inf if asked else 0.0)
    poisoned = (
        "the loss is nan in epoch 2" if asked else "the weights have grown beyond all numbers in epoch 2: the last"
    )
    with pytest.raises(TrainingError, match=poisoned):
        running.run()
    assert (tmp_path / "state.pt").exists() != asked  # there was no other reason to save one
    if asked:
        return
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["tally"]["steps"]) == (1, 0)
    assert all(value.isfinite().all() for name in ("network", "average") for value in state[name].values())


@pytest.mark.parametrize("value", [math.nan, 1e5])
def test_what_the_last_step_makes_of_the_weights_is_never_saved(tmp_path: Path, value: float) -> None:
    """Neither is what half precision has no number for, though the loss may be fine with it."""
    running = trainer(tmp_path, replace(RECIPE, phases=((8, 1),)))
    running.progress.on_epoch = lambda _line: running.learner.average.network.head.weight.data.fill_(value)
    with pytest.raises(TrainingError, match=r"in epoch 1: no state was saved yet; try a lower --learning-rate$"):
        running.run()
    assert {path.name for path in tmp_path.iterdir()} == {"settings.json", "metrics.jsonl"}


def test_seconds_are_counted_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("model.train.time.monotonic", lambda: clock[0])
    step = Learner.step

    def second(self: Learner, *arguments: Any) -> Any:
        clock[0] += 1
        return step(self, *arguments)

    def stop(done: int, *_: object) -> None:
        if done == 5:
            stopped.request_stop()

    monkeypatch.setattr(Learner, "step", second)
    stopped = trainer(tmp_path, progress=stop, progress_every_s=0.0)
    with pytest.raises(Stopped):
        stopped.run()
    clock[0] += 1000
    loaded = checkpoint.load(trainer(tmp_path).run())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["seconds"] for line in lines] == [3.0, 6.0, 9.0]
    assert loaded.metadata.recipe["training_seconds"] == 9


def test_the_state_is_saved_as_often_as_asked_and_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An epoch lasts six steps of a minute; the time to the next save counts from the last one."""
    clock, saved = [0.0], []
    monkeypatch.setattr("model.train.time.monotonic", lambda: clock[0])
    step, save = Learner.step, Trainer._save_state

    def minute(self: Learner, *arguments: Any) -> Any:
        clock[0] += 60
        return step(self, *arguments)

    def noted(self: Trainer) -> None:
        saved.append(clock[0] / 60)
        save(self)

    monkeypatch.setattr(Learner, "step", minute)
    monkeypatch.setattr(Trainer, "_save_state", noted)
    trainer(tmp_path, replace(RECIPE, phases=((8, 2),), batch_size=8), save_every_s=300.0).run()
    assert saved == [5, 10, 12]
