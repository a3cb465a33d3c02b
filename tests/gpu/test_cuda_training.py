"""Training on a real CUDA device: 64 pictures of noise are learnt, and a run that was stopped goes on."""

import json
from dataclasses import replace

import pytest
import torch

from model import checkpoint
from model.evaluate import compute_logits
from model.hardware.device import pick_device
from model.train import Trainer
from model.training.errors import Stopped
from tests.toy_training import OVERFITTING, RECIPE, toy_dataset

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")]

DEVICE = "cuda"
LEARNT = replace(RECIPE, **OVERFITTING, phases=((16, 25),), cutmix=0.0)


def trainer(out, recipe=RECIPE, **options):
    return Trainer(recipe, toy_dataset(), out, device=pick_device(DEVICE), **options)


@pytest.mark.parametrize("compiled", [False, True])  # without a C compiler, the second one is the first one again
def test_pictures_are_learnt_by_heart_and_the_checkpoint_says_so_on_a_cpu(tmp_path, compiled):
    loaded = checkpoint.load(trainer(tmp_path, LEARNT, temperature=1.0, compiled=compiled).run())
    dataset, metadata = toy_dataset(), loaded.metadata
    logits = compute_logits(loaded.network(), dataset.images, metadata.mean, metadata.std)
    assert (logits.argmax(dim=1) == dataset.labels).double().mean() >= 0.95
    probabilities = metadata.calibration.probabilities(
        compute_logits(loaded.network(), torch.tensor(loaded.self_test_images), metadata.mean, metadata.std)
    )
    torch.testing.assert_close(probabilities, torch.tensor(loaded.self_test_probabilities), rtol=0, atol=1e-3)


def test_a_run_that_was_stopped_within_an_epoch_goes_on_to_its_end(tmp_path):
    def stop(done, *_):
        if done == 5:
            stopped.request_stop()

    stopped = trainer(tmp_path, progress=stop, progress_every_s=0.0)
    with pytest.raises(Stopped):
        stopped.run()
    resumed = trainer(tmp_path)
    resumed.run()
    assert all(parameter.is_cuda for parameter in resumed.learner.network.parameters())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    # The same pictures in the same order, up to rounding, which no two runs on a GPU need have alike.
    undisturbed = trainer(tmp_path / "undisturbed")
    undisturbed.run()
    expected = [json.loads(line) for line in undisturbed.folder.metrics.read_text().splitlines()]
    for line, other in zip(lines, expected, strict=True):
        assert line["learning_rate"] == other["learning_rate"]
        assert line["loss"] == pytest.approx(other["loss"], rel=0.05)
