import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.data import Dataset
from model.resnet import resnet18
from model.training.distributed import World
from model.training.errors import TrainingError
from model.training.learner import Learner
from model.training.optim import one_cycle
from model.training.recipe import Recipe
from model.transforms import normalise

pytestmark = pytest.mark.usefixtures("narrow_stages")

RECIPE = replace(
    Recipe(), phases=((8, 2),), batch_size=8, crop_padding=0, flip=False, cutout=0, hold_out=0, label_smoothing=0.1
)
CPU = torch.device("cpu")


def noise() -> Dataset:
    images = torch.randint(0, 256, (32, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Dataset("noise", "train", images, torch.arange(32) % 4, ("ant", "bee", "cat", "dog"))


def plain_steps(recipe: Recipe, order: Tensor, count: int) -> dict[str, Tensor]:
    """Do the same steps in the plainest PyTorch: no foreach, no channels-last, weight decay added by hand."""
    data = noise()
    torch.manual_seed(recipe.seed)
    network = resnet18(num_classes=4).train()
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, foreach=False)
    images = normalise(data.images, torch.tensor(data.mean), torch.tensor(data.std))
    for step in range(count):
        index = order[step * 8 : step * 8 + 8]
        optimiser.zero_grad()
        log_probabilities = torch.log_softmax(network(images[index]), dim=1)
        target = torch.full((8, 4), 0.1 / 4)
        target[torch.arange(8), data.labels[index]] += 0.9
        (-(target * log_probabilities).sum() / 8).backward()
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter.grad += recipe.weight_decay * parameter.detach()
        optimiser.param_groups[0]["lr"] = one_cycle(step, 8, recipe.warmup, recipe.learning_rate)
        optimiser.step()
    return network.state_dict()


def test_steps_equal_plain_pytorch() -> None:
    recipe = replace(RECIPE, learning_rate=0.005, weight_decay=0.5)
    learner = Learner(recipe, noise(), device=CPU)
    before = {name: value.clone() for name, value in learner.network.named_parameters()}
    order, draws = learner.draw_epoch(0)
    learner.network.train()
    for number in range(2):
        learner.step(0, number, order, draws)
    expected = plain_steps(recipe, order, 2)
    for name, value in learner.network.named_parameters():
        # Relative to how far they moved, as a vector: single weights differ where rounding tips a ReLU over.
        moved = expected[name] - before[name]
        assert (value.detach() - expected[name]).norm() <= 0.01 * moved.norm(), name
        assert moved.norm() > 0


def test_cutmix_blends_the_losses_of_both_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is sure of class 0 whatever it sees: the loss is known for every pair of labels."""
    recipe = replace(RECIPE, cutmix=1.0, label_smoothing=0.0, batch_size=32)
    learner = Learner(recipe, noise(), device=CPU)
    with torch.no_grad():
        learner.network.head.weight.zero_()
        learner.network.head.bias.copy_(torch.tensor([5.0, 0.0, 0.0, 0.0]))
    order, draws = learner.draw_epoch(0)
    cost = -torch.log_softmax(learner.network.head.bias.detach(), dim=0)
    labels, partners = learner.labels, learner.labels[draws.partner]
    kept = draws.kept_share(8)
    expected = (kept * cost[labels] + (1 - kept) * cost[partners]).mean()
    loss, correct = learner.step(0, 0, order, draws)
    torch.testing.assert_close(loss, expected)
    larger = torch.where(kept >= 0.5, labels, partners)
    assert int(correct) == int((larger == 0).sum()) != 8  # as many as the images' own labels would say
    assert float((kept < 1).float().mean()) > 0.9


def test_state_brings_everything_back() -> None:
    learner, other = Learner(RECIPE, noise(), device=CPU), Learner(replace(RECIPE, seed=1), noise(), device=CPU)
    order, draws = learner.draw_epoch(0)
    learner.step(0, 0, order, draws)
    other.load_state_dict(copy.deepcopy(learner.state_dict()))
    for one in (learner, other):
        one.step(0, 1, order, draws)
    for name, value in learner.state_dict()["average"].items():
        assert torch.equal(value, other.state_dict()["average"][name])


def test_compiling_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)  # no compiler is needed to see what it leaves
    learner = Learner(RECIPE, noise(), device=CPU, compiled=True)
    before = {name: value.clone() for name, value in learner.network.state_dict().items()}
    assert learner.compile() > 0
    assert all(torch.equal(value, before[name]) for name, value in learner.network.state_dict().items())
    assert all(parameter.grad is None for parameter in learner.network.parameters())


def test_network_that_is_run_is_the_one_that_was_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []

    def compiled(module: nn.Module, **_: object) -> nn.Module:
        module.register_forward_hook(lambda *_: ran.append(1))
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    monkeypatch.setattr("model.training.learner.compiler_works", lambda _device: True)
    learner = Learner(RECIPE, noise(), device=CPU, compiled=True)
    learner.step(0, 0, *learner.draw_epoch(0))
    assert ran == [1]


def test_without_a_compiler_training_goes_on_uncompiled(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_value: torch.Tensor) -> None:
        raise RuntimeError("Failed to find C compiler.\nPlease specify one.")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fails)
    learner = Learner(RECIPE, noise(), device=CPU, compiled=True)
    assert not learner.compiled
    learner.step(0, 0, *learner.draw_epoch(0))
    assert "uncompiled: torch.compile does not work here: Failed to find C compiler." in caplog.text


def test_one_process_without_a_compiler_leaves_all_of_them_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(World, "any", lambda _self, _flag, _device: True)
    assert not Learner(RECIPE, noise(), device=CPU, compiled=True).compiled


def test_too_few_images_for_a_batch_are_refused() -> None:
    with pytest.raises(TrainingError, match="32 training images are fewer than one batch of 33"):
        Learner(replace(RECIPE, batch_size=33), noise(), device=CPU)


def test_what_covers_a_part_of_an_image_has_the_mean_colour() -> None:
    data = replace(noise(), mean=(0.2, 0.4, 0.6))
    assert Learner(RECIPE, data, device=CPU).fill.tolist() == [51, 102, 153]


@pytest.mark.parametrize("slow_elsewhere", [True, False])
def test_processes_train_in_one_precision_also_where_each_measures_another(
    monkeypatch: pytest.MonkeyPatch, slow_elsewhere: bool
) -> None:
    monkeypatch.setattr("model.training.learner.has_fast_bfloat16", lambda _device: True)
    monkeypatch.setattr(World, "any", lambda _, flag, _device: flag or slow_elsewhere)
    assert Learner(RECIPE, noise(), device=CPU).autocast == (None if slow_elsewhere else torch.bfloat16)
