"""Every kind of network is trained, saved, loaded and served by the same code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import app.cli
from app.backends.choice import open_backend
from app.engine import CheckpointEngine
from app.settings import Settings
from model import checkpoint
from model.data import Dataset
from model.train import Trainer
from model.training.recipe import Recipe

NOISE = torch.randint(0, 256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
DATASET = Dataset("toy", "train", NOISE, torch.arange(32) % 2, ("ant", "bee"))
# A step small enough that 152 layers, whose batch norm has seen one batch, do not overflow in evaluation.
ONE_STEP = replace(Recipe(), phases=((8, 1),), batch_size=16, learning_rate=0.01, hold_out=16, crop_padding=2, cutout=0)
RESNEXT = {"arch": "resnet50", "groups": 4, "width_per_group": 16}

pytestmark = pytest.mark.usefixtures("narrow_stages")


@pytest.mark.parametrize(
    "options",
    [
        {"arch": "resnet18", "shortcut": "none"},
        {"arch": "resnet18", "stem": "imagenet"},
        {"arch": "resnet50"},
        RESNEXT,
        {"arch": "resnet152"},
        {"arch": "resnet20"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_it_learns_is_saved_loaded_and_served(tmp_path: Path, options: dict[str, object]) -> None:
    trainer = Trainer(replace(ONE_STEP, **options), DATASET, tmp_path, device=torch.device("cpu"))
    before = {name: value.clone() for name, value in trainer.learner.network.named_parameters()}
    loaded = checkpoint.load(trainer.run())
    unmoved = [name for name, value in trainer.learner.network.named_parameters() if torch.equal(value, before[name])]
    assert unmoved == []
    assert options.items() <= loaded.metadata.architecture.items()
    engine = CheckpointEngine(
        loaded,
        open_backend(loaded, Settings(device="cpu", precision="float32", runtime="openvino", threads=1)),
        (1, 16),
    )
    engine.self_test()
    assert engine.run(np.zeros((2, 3, 8, 8), np.uint8)).shape == (2, 2)


def test_command_line_trains_a_resnext_and_goes_on_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "model.datasets.load_dataset", lambda *_args, **_options: replace(DATASET, images=DATASET.images.clone())
    )
    common = "train --device cpu --phases 8:1 --batch-size 16 --hold-out 16 --arch resnet50"

    def resnet(command: str) -> int:
        arguments = app.cli.build_parser().parse_args([*common.split(), *command.split()])
        return int(arguments.run(arguments))

    first, second = tmp_path / "first", tmp_path / "second"
    groups = "--groups 4 --width-per-group 16"
    assert resnet(f"--out {first} {groups}") == 0
    architecture = checkpoint.load(first / "checkpoint.safetensors").metadata.architecture
    assert RESNEXT.items() <= architecture.items()
    assert resnet(f"--out {second} --init-from {first}/checkpoint.safetensors") == 0
    capsys.readouterr()
    assert resnet(f"--out {tmp_path}/third --groups 1 --init-from {first}/checkpoint.safetensors") == 1
    assert "another architecture" in capsys.readouterr().err
    assert resnet(f"--out {tmp_path}/fourth --groups 0") == 1
    assert "resnet: error: groups and width_per_group must be integers" in capsys.readouterr().err


def test_older_checkpoint_is_a_start_for_the_network_that_it_holds(tmp_path: Path) -> None:
    recipe = replace(ONE_STEP, arch="resnet18")
    source = checkpoint.load(Trainer(recipe, DATASET, tmp_path / "first", device=torch.device("cpu")).run())
    older = {key: source.metadata.architecture[key] for key in ("arch", "num_classes", "stem")}
    metadata = source.metadata.model_copy(update={"architecture": older})
    source = replace(source, metadata=metadata)
    trainer = Trainer(recipe, DATASET, tmp_path / "second", device=torch.device("cpu"), init_from=source)
    assert torch.equal(trainer.learner.network.head.bias, source.tensors["head.bias"])
