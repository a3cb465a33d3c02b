import sys
from pathlib import Path
from typing import Any

import pytest

from model.extras import MissingExtra
from model.training.tensorboard_log import TensorBoardLog

EXPECTED_TAGS = {
    "loss": "loss/training",
    "held_out_nll": "loss/held_out_nll",
    "accuracy": "accuracy/training",
    "held_out_accuracy": "accuracy/held_out",
    "learning_rate": "learning_rate",
    "images_per_s": "images_per_s",
}


def line(epoch: int, **more: float) -> dict[str, Any]:
    figures = {name: epoch + i / 8 for i, name in enumerate(EXPECTED_TAGS)}
    return {"epoch": epoch, "epochs": 9, "size": 32, "seconds": 1.0, **figures, **more}


def write(folder: Path, *lines: dict[str, Any]) -> None:
    log = TensorBoardLog(folder)
    for one in lines:
        log(one)
    log.close()


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(one.step, one.value) for one in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_figure_has_a_curve_over_the_epochs(tmp_path: Path) -> None:
    write(tmp_path, line(1), line(2))
    expected = {tag: [(1, 1 + i / 8), (2, 2 + i / 8)] for i, tag in enumerate(EXPECTED_TAGS.values())}
    assert scalars(tmp_path) == expected


def test_figures_that_a_line_lacks_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, {name: value for name, value in line(1).items() if not name.startswith("held_out")})
    assert scalars(tmp_path).keys() == {"loss/training", "accuracy/training", "learning_rate", "images_per_s"}


def test_epochs_that_a_resumed_run_repeats_count_once(tmp_path: Path) -> None:
    write(tmp_path, line(1), line(2, loss=7.0), line(3))  # and a crash before the state of epoch 2 was saved
    write(tmp_path, line(2), line(3))
    assert scalars(tmp_path)["loss/training"] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_an_epoch_can_be_seen_before_the_run_ends(tmp_path: Path) -> None:
    log = TensorBoardLog(tmp_path)
    log(line(1))
    assert scalars(tmp_path)["loss/training"] == [(1, 1.0)]
    log.close()


def test_a_log_without_epochs_leaves_nothing(tmp_path: Path) -> None:
    write(tmp_path / "tensorboard")
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_one_line_that_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        MissingExtra, match=r"^--tensorboard needs the optional extra 'tensorboard' .*\[tensorboard\]'$"
    ):
        TensorBoardLog(tmp_path)
