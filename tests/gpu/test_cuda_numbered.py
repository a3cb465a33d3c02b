"""One CUDA device of several, by its number: all of the work is done there, and nothing on another one."""

import gc

import numpy as np
import pytest
import torch

from app.backends.agreement import distinct
from app.backends.cuda_backend import PIECE, open_cuda_backend
from app.backends.cuda_proof import TOLERANCES
from app.engine import load_engine
from app.settings import SHIPPED_WEIGHTS, Settings
from model import checkpoint
from model.hardware.device import pick_device
from model.training.learner import Learner
from tests.toy_training import RECIPE, toy_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]


@pytest.fixture(params=[0, 1])
def number(request):
    if request.param >= torch.cuda.device_count():
        pytest.skip("this machine has a single CUDA device")
    return request.param


def held_elsewhere(number):
    """Bytes on the other devices; what tests before have left may go at any moment."""
    gc.collect()
    return [torch.cuda.memory_allocated(other) for other in range(torch.cuda.device_count()) if other != number]


def test_graphs_of_a_numbered_device_give_the_eager_logits(number):
    source, before = checkpoint.load(SHIPPED_WEIGHTS), held_elsewhere(number)
    backend = open_cuda_backend(source, f"cuda:{number}", "float32", 1)
    for count in (1, 16, 2 * PIECE + 1):  # the last one in both lanes
        pictures = distinct(source.self_test_images, count)
        expected = backend.eager.logits(pictures)
        off = np.abs(backend.logits(pictures) - expected).max()
        assert off <= TOLERANCES["float32"] * np.abs(expected).max()
    assert backend.mode != "eager"
    assert held_elsewhere(number) == before
    backend.close()


def test_an_engine_serves_on_a_numbered_device(number):
    engine = load_engine(Settings(device=f"cuda:{number}", batch_sizes=(1, 4)))
    assert engine.card["device"] == f"cuda:{number}"
    engine.self_test()
    engine.close()


def test_a_step_of_training_is_done_on_a_numbered_device(number):
    before = held_elsewhere(number)
    learner = Learner(RECIPE, toy_dataset(), device=pick_device(f"cuda:{number}"))
    loss, _ = learner.step(0, 0, *learner.draw_epoch(0))
    assert loss.device == torch.device("cuda", number)
    assert torch.isfinite(loss)
    assert held_elsewhere(number) == before


def test_a_number_that_no_device_has_is_refused():
    count = torch.cuda.device_count()
    with pytest.raises(ValueError, match=f"there is no device cuda:{count}"):
        pick_device(f"cuda:{count}")
