"""A run folder that holds a run already: the same one, finished, damaged or pinned, and others, which are refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model import checkpoint
from model.checkpoint import Checkpoint
from model.train import Trainer
from model.training.errors import TrainingError
from model.training.run_folder import RunFolder
from tests.toy_training import toy_dataset
from tests.unit.model.runs import RECIPE, epochs_in, everything_stored, trainer

pytestmark = pytest.mark.usefixtures("narrow_stages")


def test_finished_run_can_be_run_again_to_the_same_end(tmp_path: Path, undisturbed: Path) -> None:
    for name in ("state.pt", "metrics.jsonl"):
        (tmp_path / name).write_bytes((undisturbed / name).read_bytes())
    again = everything_stored(checkpoint.load(trainer(tmp_path).run()))
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    assert all(torch.equal(again[name], expected[name]) for name in expected)
    assert epochs_in(tmp_path) == [1, 2, 3]


def finished(undisturbed: Path, out: Path) -> Path:
    """A copy of a finished run, whose checkpoint has been given another score since."""
    for name in ("state.pt", "metrics.jsonl", "checkpoint.safetensors"):
        (out / name).write_bytes((undisturbed / name).read_bytes())
    path = out / "checkpoint.safetensors"
    loaded = checkpoint.load(path)
    measured = (*loaded.metadata.measured, loaded.metadata.measured[0] | {"split": "test"})
    recorded = loaded.metadata.model_copy(update={"measured": measured})
    checkpoint.save(path, recorded, loaded.tensors, loaded.self_test_images, loaded.self_test_probabilities)
    return path


def test_a_finished_run_keeps_its_checkpoint_with_what_was_recorded_since(tmp_path: Path, undisturbed: Path) -> None:
    path = finished(undisturbed, tmp_path)
    before = path.read_bytes()
    assert trainer(tmp_path).run() == path
    assert path.read_bytes() == before
    trainer(tmp_path, temperature=1.5).run()
    assert checkpoint.load(path).metadata.temperature == 1.5


@pytest.mark.parametrize("line", ['{"epoch": 3, "lo', "\0" * 20])
def test_of_a_finished_run_a_line_that_a_crash_broke_off_is_dropped(
    tmp_path: Path, undisturbed: Path, line: str
) -> None:
    """Lines are not forced onto the disk as states are: after a loss of power the last one may be broken off."""
    finished(undisturbed, tmp_path)
    metrics = tmp_path / "metrics.jsonl"
    whole = "".join(metrics.read_text().splitlines(keepends=True)[:-1])
    metrics.write_text(whole + line)
    assert trainer(tmp_path).run() == tmp_path / "checkpoint.safetensors"
    assert metrics.read_text() == whole


def test_of_a_finished_run_with_whole_lines_nothing_is_written(
    tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may lie where nothing can be written."""
    finished(undisturbed, tmp_path)
    monkeypatch.setattr("model.training.run_folder.write_atomically", lambda *_: pytest.fail("written"))
    trainer(tmp_path).run()


def test_a_finished_runs_checkpoint_is_written_again_without_pictures_and_then_stays_so(
    tmp_path: Path, undisturbed: Path
) -> None:
    path = finished(undisturbed, tmp_path)
    trainer(tmp_path, synthetic_self_test=True).run()
    assert checkpoint.load(path).metadata.has_synthetic_self_test
    before = path.read_bytes()
    for wanted in (True, False):
        trainer(tmp_path, synthetic_self_test=wanted).run()
        assert path.read_bytes() == before


def test_a_damaged_checkpoint_of_a_finished_run_is_written_again(tmp_path: Path, undisturbed: Path) -> None:
    path = finished(undisturbed, tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    again = everything_stored(checkpoint.load(trainer(tmp_path).run()))
    expected = everything_stored(checkpoint.load(undisturbed / "checkpoint.safetensors"))
    assert all(torch.equal(again[name], expected[name]) for name in expected)


def test_a_pinned_checkpoint_is_not_replaced(tmp_path: Path, undisturbed: Path) -> None:
    path = finished(undisturbed, tmp_path)
    (tmp_path / "SHA256SUMS").write_text(f"{checkpoint.load(path).sha256}  {path.name}\n")
    before = path.read_bytes()
    assert trainer(tmp_path).run() == path
    with pytest.raises(TrainingError, match="pinned by the SHA256SUMS"):
        trainer(tmp_path, temperature=1.5).run()
    assert path.read_bytes() == before


def test_a_checkpoint_whose_run_is_not_known_is_not_replaced(tmp_path: Path, undisturbed: Path) -> None:
    path = finished(undisturbed, tmp_path)
    (tmp_path / "state.pt").unlink()
    before = path.read_bytes()
    with pytest.raises(TrainingError, match="a checkpoint without the state of its run"):
        trainer(tmp_path).run()
    assert path.read_bytes() == before
    assert epochs_in(tmp_path) == [1, 2, 3]


def test_two_runs_in_one_folder_do_not_disturb_each_other(tmp_path: Path) -> None:
    with RunFolder(tmp_path).taken(), pytest.raises(TrainingError, match="another process trains in"):
        trainer(tmp_path).run()


def test_folder_of_another_recipe_is_refused(undisturbed: Path) -> None:
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    with pytest.raises(TrainingError, match=r"another run \(learning_rate 0.1, not 0.2\)"):
        trainer(undisturbed, replace(RECIPE, learning_rate=0.2)).run()
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_folder_of_a_run_on_other_images_is_refused(undisturbed: Path) -> None:
    dataset = toy_dataset()
    dataset.images[0, 0, 0, 0] += 1
    with pytest.raises(TrainingError, match="other images"):
        Trainer(RECIPE, dataset, undisturbed, device=torch.device("cpu")).run()


def begun_from(source: Checkpoint, out: Path) -> Trainer:
    """Save the state of a run that starts from a checkpoint, and return the run."""
    run = trainer(out, init_from=source)
    run.folder.begin({})
    run._save_state()
    return run


def recorded(undisturbed: Path, path: Path, *, weights: float = 0.0) -> Checkpoint:
    """Return another file of a checkpoint, with a score recorded in it, and with other weights if wanted."""
    loaded = checkpoint.load(undisturbed / "checkpoint.safetensors")
    metadata = loaded.metadata.model_copy(update={"measured": ({"split": "test", "images": 1, "top1": 1.0},)})
    tensors = loaded.tensors | {"head.bias": loaded.tensors["head.bias"] + weights}
    checkpoint.save(path, metadata, tensors, loaded.self_test_images, loaded.self_test_probabilities)
    return checkpoint.load(path)


def test_a_score_recorded_in_the_initial_checkpoint_makes_no_other_run(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    begun_from(source, tmp_path / "run")
    later = recorded(undisturbed, tmp_path / "later.safetensors")
    assert later.version != source.version
    trainer(tmp_path / "run", init_from=later)._resume()
    other = recorded(undisturbed, tmp_path / "other.safetensors", weights=1.0)
    with pytest.raises(TrainingError, match=r"another run \(another --init-from\)"):
        trainer(tmp_path / "run", init_from=other)._resume()


def test_an_older_state_names_the_file_that_it_was_begun_from(tmp_path: Path, undisturbed: Path) -> None:
    source = checkpoint.load(undisturbed / "checkpoint.safetensors")
    run = begun_from(source, tmp_path)
    state = torch.load(run.folder.state, weights_only=True)
    state["recipe"] = json.dumps(json.loads(state["recipe"]) | {"init_from": source.version})
    run.folder.save_state(state)
    trainer(tmp_path, init_from=source)._resume()
    with pytest.raises(TrainingError, match=r"another run \(learning_rate 0.1, not 0.2\)"):
        trainer(tmp_path, replace(RECIPE, learning_rate=0.2), init_from=source)._resume()
