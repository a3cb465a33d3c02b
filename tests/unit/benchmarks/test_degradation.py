"""The degradation experiment: what it records is what it says, nothing is trained twice, and the figures are drawn."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from benchmarks import degradation
from benchmarks.degradation import Settings, as_text, build, gradient_norms, mean_norms, train, train_and_keep
from benchmarks.degradation_figures import draw_gradients, draw_loss
from model.data import DataError, Dataset
from model.training.augment import augment_batch, draw_augmentation, random_stream
from model.transforms import normalise
from tests.torch_threads import one_torch_thread

SETTINGS = Settings(images=24, held_out=8, epochs=2, batch_size=8, learning_rate=0.01)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    with one_torch_thread():
        yield


def noise(count: int) -> Dataset:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Dataset("cifar10", "train", images, torch.arange(count) % 4, ("ant", "bee", "cat", "dog"))


def record_of(shortcut: str = "identity", arch: str = "resnet20", settings: Settings = SETTINGS) -> dict[str, Any]:
    return train(arch, shortcut, settings, training=noise(settings.images), held=noise(8), device=CPU)


@pytest.fixture(scope="module")
def records() -> list[dict[str, Any]]:
    return [record_of("identity"), record_of("none")]


def test_gradient_norms_equal_a_hand_calculation() -> None:
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 2, 1, bias=False))
    first, second = network
    nn.init.constant_(first.weight, 3.0)
    second.weight.data = torch.tensor([2.0, 5.0]).view(2, 1, 1, 1)
    # The loss is the sum of 2 * 3x and 5 * 3x over the pixels 1 and -4, whose sum is -3:
    # d/da = (2 + 5) * -3 for the first weight a = 3, and 3 * -3 for each of the second convolution's two.
    network(torch.tensor([[[[1.0, -4.0]]]])).sum().backward()
    assert gradient_norms(network) == pytest.approx([21.0, 9.0 * 2**0.5])


def test_mean_norms_are_those_of_each_convolution() -> None:
    assert mean_norms([[1.0, 10.0], [2.0, 40.0]]) == [1.5, 25.0]


def test_first_norms_are_those_of_the_untrained_network(records: list[dict[str, Any]]) -> None:
    for record in records:
        network = build("resnet20", record["shortcut"], 4, seed=0)
        training = noise(24)
        index = torch.randperm(24, generator=random_stream("order", 0, 0))[:8]
        draws = draw_augmentation(degradation.AUGMENTATION, 24, 8, seed=0, epoch=0)
        batch = augment_batch(
            training.images, index, draws, degradation.AUGMENTATION, torch.zeros(3, dtype=torch.uint8)
        )
        logits = network(normalise(batch, torch.tensor(training.mean), torch.tensor(training.std)))
        loss = nn.functional.cross_entropy(logits, training.labels[index])
        loss.backward()
        assert record["loss"][0] == pytest.approx(float(loss.detach()), abs=2e-4)
        assert record["gradients"][0]["norms"] == pytest.approx(gradient_norms(network), rel=1e-3)


def test_record_has_every_step_every_epoch_and_every_convolution(records: list[dict[str, Any]]) -> None:
    residual, plain = records
    for record in records:
        assert len(record["loss"]) == 6
        assert len(record["held_out_accuracy"]) == 2
        assert [point["steps_done"] for point in record["gradients"]] == [0, 3, 6]
        assert all(len(point["norms"]) == len(record["convolutions"]) for point in record["gradients"])
    assert len(plain["convolutions"]) == 19
    assert set(residual["convolutions"]) - set(plain["convolutions"]) == {
        "stages.1.0.shortcut.conv",
        "stages.2.0.shortcut.conv",
    }


def test_plain_network_starts_from_its_residual_twin() -> None:
    residual, plain = (build("resnet20", shortcut, 10, seed=3).state_dict() for shortcut in ("identity", "none"))
    assert len(plain) > 50
    assert all(torch.equal(value, residual[name]) for name, value in plain.items())
    assert not torch.equal(
        build("resnet20", "none", 10, seed=4).state_dict()["stem.conv.weight"], plain["stem.conv.weight"]
    )


def test_loss_that_is_not_finite_ends_the_run() -> None:
    with pytest.raises(ArithmeticError, match="resnet20, shortcut none: the loss is nan at step"):
        record_of("none", settings=replace(SETTINGS, learning_rate=float("nan")))


def test_finished_network_is_not_trained_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(degradation, "load_cifar10", lambda *_args, **_options: noise(40))
    path = tmp_path / "work" / "resnet20-none.json"

    def run(settings: Settings = SETTINGS) -> dict[str, Any]:
        return train_and_keep(path, "resnet20", "none", settings, root=tmp_path, device="cpu", threads=1)

    first = run()
    assert json.loads(path.read_text()) == first
    with monkeypatch.context() as patch:
        patch.setattr(degradation, "train", lambda *_args, **_options: pytest.fail("trained again"))
        assert run() == first
    other = replace(SETTINGS, seed=1)
    assert run(other)["settings"] == asdict(other)
    with pytest.raises(DataError, match=r"from one batch \(8\) to 32"):
        run(replace(SETTINGS, images=33))


def test_text_is_the_same_json_with_a_list_a_line() -> None:
    result = {"networks": [{"loss": [1.5, 2.0], "names": ["a b", "c"], "gradients": [{"norms": [1, 2]}]}], "empty": []}
    text = as_text(result)
    assert json.loads(text) == result
    assert '"loss": [1.5, 2.0],' in text
    assert '"names": ["a b", "c"],' in text


@pytest.mark.parametrize("draw", [draw_loss, draw_gradients])
@pytest.mark.parametrize("depths", [1, 2])
def test_figures_are_png_files(tmp_path: Path, records: list[dict[str, Any]], draw: Any, depths: int) -> None:
    others = [{**record, "arch": "resnet56"} for record in records] if depths == 2 else []
    path = tmp_path / "figure.png"
    draw([*records, *others], path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) > 10_000  # more than an empty sheet
