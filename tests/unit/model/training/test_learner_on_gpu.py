"""What a training step does on a GPU, on one that is not here."""

from dataclasses import replace

import pytest
import torch

from model.data import Dataset
from model.hardware.precision import has_fast_bfloat16
from model.training import jpeg
from model.training.learner import Learner
from model.training.recipe import Recipe
from tests.unseen_gpu import GPU, unseen_gpu

EVERYTHING = replace(
    Recipe(),
    phases=((8, 1), (16, 1)),
    batch_size=8,
    cutout=4,
    cutmix=0.5,
    jpeg=0.3,
    greyscale=0.2,
    rescale=0.2,
    label_smoothing=0.1,
    hold_out=0,
)


@pytest.fixture
def watch(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    with unseen_gpu(monkeypatch) as watch:
        yield watch
    for constant in (jpeg._constant, jpeg._cosine_transform):
        constant.cache_clear()  # they have no numbers


@pytest.fixture
def learner(watch, narrow_stages, monkeypatch):
    monkeypatch.setattr("model.training.learner.has_fast_bfloat16", has_fast_bfloat16)  # not what conftest.py has
    images = torch.zeros((32, 3, 16, 16), dtype=torch.uint8)
    data = Dataset("noise", "train", images, torch.arange(32) % 4, ("ant", "bee", "cat", "dog"))
    return Learner(EVERYTHING, data, device=GPU)


def test_a_step_neither_waits_for_the_gpu_nor_copies_anything_and_has_a_kernel_for_all_it_does(learner, watch):
    learner.network.train()
    for epoch in range(2):
        order, draws = learner.draw_epoch(epoch)
        learner.step(epoch, 0, order, draws)  # constants are copied the first time
        watch.forget()
        loss, correct = learner.step(epoch, 1, order, draws)
        assert loss.device == correct.device == GPU
        assert "aten::convolution" in watch.operations
        assert "aten::_fused_sgd_" in watch.operations
        assert watch.copies == []
        assert watch.without_kernel() == []


def test_products_are_of_bfloat16_and_weights_of_float32(learner, watch):
    watch.forget()
    learner.step(0, 0, *learner.draw_epoch(0))
    assert watch.convolved == {torch.bfloat16}
    assert {parameter.dtype for parameter in learner.network.parameters()} == {torch.float32}
    assert all(parameter.grad is not None for parameter in learner.network.parameters())


def test_logits_of_held_out_pictures_come_back_to_the_host(learner):
    logits = learner.logits(torch.zeros((5, 3, 16, 16), dtype=torch.uint8), 8)
    assert logits.device.type == "cpu"
    assert logits.shape == (5, 4)
