import json
import os
import signal
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from model import checkpoint
from model.resnet import resnet18
from model.train import Trainer
from model.training import distributed
from model.training.distributed import World, join_world
from model.training.errors import Stopped, TrainingError
from tests import toy_training
from tests.toy_training import RECIPE, toy_dataset

pytestmark = pytest.mark.usefixtures("narrow_stages")

SCRIPT = [toy_training.__file__]
ROOT = Path(toy_training.__file__).parents[1]
ONE = [sys.executable, *SCRIPT]
TWO, THREE = (
    [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", number, *SCRIPT]
    for number in "23"
)


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def train_here(out: Path, **changes: object) -> None:
    """Train in this process, which has torch imported, and what SCRIPT sets set by fixtures."""
    Trainer(replace(RECIPE, **changes), toy_dataset(), out, device=torch.device("cpu")).run()


def train(command: list[str], out: Path) -> None:
    done = subprocess.run(
        [*command, str(out)], check=False, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, narrow_stages: None, one_thread: None, float32: None) -> Path:
    out = tmp_path_factory.mktemp("alone")
    train_here(out)
    return out


def test_two_processes_train_like_one(tmp_path: Path, alone: Path) -> None:
    train(TWO, tmp_path)
    pairs = list(zip(metrics(tmp_path), metrics(alone), strict=True))
    assert len(pairs) == 3
    for two, one in pairs:
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-3)
        assert two["held_out_nll"] == pytest.approx(one["held_out_nll"], abs=1e-3)
        assert two["learning_rate"] == one["learning_rate"]
    together, single = (checkpoint.load(out / "checkpoint.safetensors") for out in (tmp_path, alone))
    assert together.metadata.recipe["device"] == "2 processes, each 1 CPU threads"
    torch.manual_seed(RECIPE.seed)
    start = resnet18(num_classes=4).state_dict()
    for name, tensor in single.tensors.items():
        moved = (tensor.float() - start[name]).norm()
        assert (together.tensors[name].float() - tensor.float()).norm() <= 0.05 * moved, name


def test_three_processes_share_what_three_does_not_divide(tmp_path: Path) -> None:
    """The sixteen held-out images: they get six, five and five."""
    train_here(tmp_path / "one", batch_size=15)
    train([*THREE, "--batch-size", "15"], tmp_path / "three")
    pairs = list(zip(metrics(tmp_path / "three"), metrics(tmp_path / "one"), strict=True))
    assert len(pairs) == 3
    for three, one in pairs:
        assert three["loss"] == pytest.approx(one["loss"], abs=1e-3)
        assert three["accuracy"] == pytest.approx(one["accuracy"], abs=0.05)
        assert three["held_out_nll"] == pytest.approx(one["held_out_nll"], abs=1e-3)


def test_killed_run_goes_on_in_the_middle_of_an_epoch_to_the_same_weights(tmp_path: Path, alone: Path) -> None:
    """`kill -9` five steps in, that is in the second epoch; then the same run again."""
    with subprocess.Popen(
        [*ONE, str(tmp_path), "--seconds-a-step", "0.2"], env=environment(), stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line == "5 9\n":
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert (state["epoch"], state["tally"]["steps"]) in {(1, 1), (1, 2)}
    train_here(tmp_path)
    resumed, undisturbed = (checkpoint.load(out / "checkpoint.safetensors") for out in (tmp_path, alone))
    assert [
        name for name in undisturbed.tensors if not torch.equal(resumed.tensors[name], undisturbed.tensors[name])
    ] == []
    assert np.array_equal(resumed.self_test_probabilities, undisturbed.self_test_probabilities)
    assert [line["epoch"] for line in metrics(tmp_path)] == [1, 2, 3]


def test_two_processes_go_on_in_the_middle_of_an_epoch_that_one_began(tmp_path: Path, alone: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 5:
            begun.request_stop()

    begun = Trainer(RECIPE, toy_dataset(), tmp_path, device=torch.device("cpu"), progress=stop, progress_every_s=0.0)
    with pytest.raises(Stopped):
        begun.run()
    train(TWO, tmp_path)
    for resumed, undisturbed in zip(metrics(tmp_path), metrics(alone), strict=True):
        assert resumed["loss"] == pytest.approx(undisturbed["loss"], abs=1e-3)
        assert resumed["accuracy"] == pytest.approx(undisturbed["accuracy"], abs=0.05)


@pytest.mark.parametrize(("fails", "ended"), [(False, 1), (True, 0)])
def test_a_process_that_fails_on_a_gpu_waits_for_no_other(
    monkeypatch: pytest.MonkeyPatch, fails: bool, ended: int
) -> None:
    """NCCL's end waits for the others, which may be waiting for this process."""
    calls: list[str] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _device: None)
    monkeypatch.setattr(dist, "init_process_group", lambda _backend: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with suppress(OSError), join_world(torch.device("cuda")) as (world, device):
        assert (world.rank, device) == (1, torch.device("cuda", 1))
        if fails:
            raise OSError("the disk is full")
    assert len(calls) == ended


def test_one_process_is_a_world_of_its_own() -> None:
    world = World()
    assert world.is_main
    assert world.shard(torch.arange(4)).tolist() == [0, 1, 2, 3]
    assert world.any(True, torch.device("cpu"))
    assert not world.any(False, torch.device("cpu"))
    assert float(world.all_reduce_sum_(torch.tensor(2.0))) == 2.0
    assert world.all_gather(torch.arange(3)).tolist() == [0, 1, 2]


def test_shares_are_disjoint_and_cover_the_batch() -> None:
    batch = torch.arange(12)
    shares = [World(rank, 3).shard(batch) for rank in range(3)]
    assert torch.cat(shares).tolist() == batch.tolist()
    assert {len(share) for share in shares} == {4}


def test_batch_that_cannot_be_shared_equally_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="3 processes cannot share a batch of 16"):
        Trainer(RECIPE, toy_dataset(), tmp_path, device=torch.device("cpu"), world=World(0, 3))


@pytest.mark.parametrize("name", ["broadcast_buffers", "forward_sync_buffers"])
def test_buffers_are_left_alone_by_the_name_that_torch_has_for_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The other one ends in an error in older ones, in a warning of each process in newer ones."""
    signatures = {
        "broadcast_buffers": lambda module, device_ids=None, broadcast_buffers=True: None,
        "forward_sync_buffers": lambda module, broadcast_buffers=None, forward_sync_buffers=None: None,
    }
    monkeypatch.setattr(distributed, "DistributedDataParallel", signatures[name])
    assert distributed._leaving_buffers_alone() == {name: False}


def test_the_installed_torch_warns_of_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            World(0, 2).wrap(torch.nn.Linear(2, 2), torch.device("cpu"))
    finally:
        torch.distributed.destroy_process_group()


def test_a_gpu_of_one_number_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    said = "--device cuda:1 under torchrun: each process takes the GPU of its own number; give --device cuda"
    with pytest.raises(ValueError, match=said), join_world(torch.device("cuda:1")):
        pass
    monkeypatch.setenv("WORLD_SIZE", "1")
    with join_world(torch.device("cuda:1")) as (_, device):
        assert device == torch.device("cuda:1")


def test_process_without_a_gpu_of_its_own_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="process 1 on this machine has no GPU"), join_world(torch.device("cuda")):
        pass
