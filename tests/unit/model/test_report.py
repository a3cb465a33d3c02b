import io
import json
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from model import report
from model.data import Dataset
from model.evaluate import calibration_bins, expected_calibration_error
from model.extras import MissingExtra
from model.report import (
    draw_confusion_matrix,
    draw_learning_curves,
    draw_most_wrong,
    draw_reliability_diagram,
    summarise,
    write_report,
)

PNGS = ["confusion_matrix.png", "reliability_diagram.png", "most_wrong.png"]
LINE = {
    "epoch": 1,
    "epochs": 3,
    "size": 8,
    "learning_rate": 0.1,
    "loss": 2.0,
    "accuracy": 0.25,
    "images_per_s": 100.0,
    "held_out_accuracy": 0.5,
    "held_out_nll": 1.5,
}
LINES = [LINE, LINE | {"epoch": 2, "loss": 1.0}, LINE | {"epoch": 3, "loss": 0.5, "size": 16}]


def toy(labels: list[int], classes: tuple[str, ...] = ("ant", "bee", "cat")) -> Dataset:
    """Make a dataset whose images are filled with their own number."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8).contiguous()
    return Dataset("toy", "test", images, torch.tensor(labels), classes)


# Right with 0.9 and 0.6; wrong with 0.8 (bee for ant), 0.97 (ant for bee) and 0.5 (ant for bee). No image is a cat.
TOY = toy([0, 0, 1, 1, 1])
PROBABILITIES = torch.tensor(
    [[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.2, 0.6, 0.2], [0.97, 0.03, 0.0], [0.5, 0.25, 0.25]], dtype=torch.float32
)


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that were drawn."""
    figures: list[Figure] = []
    to_png = report._png

    def watched(figure: Figure) -> bytes:
        figures.append(figure)
        return to_png(figure)

    monkeypatch.setattr(report, "_png", watched)
    return figures


@pytest.fixture
def no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)


def picture_of(png: bytes) -> Image.Image:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    image = Image.open(io.BytesIO(png)).convert("L")
    assert len(image.getcolors() or []) > 2, "the picture is blank"
    return image


def title_of(figure: Figure) -> str:
    return figure.get_suptitle()


def test_numbers_equal_hand_computed_ones() -> None:
    found = summarise(TOY, PROBABILITIES)
    assert (found["split"], found["images"], found["classes"]) == ("toy test", 5, ["ant", "bee", "cat"])
    assert found["top1"] == pytest.approx(2 / 5)
    assert found["balanced_accuracy"] == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert found["confusion_matrix"] == [[1, 1, 0], [2, 1, 0], [0, 0, 0]]
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.4 + 0.97 + 0.5) / 5, abs=1e-6)  # each in a bin of its own
    filled = {i: one for i, one in enumerate(found["calibration_bins"]) if one["images"]}
    assert len(found["calibration_bins"]) == 15
    assert {i: (one["images"], one["accuracy"]) for i, one in filled.items()} == {
        7: (1, 0.0),
        9: (1, 1.0),
        12: (1, 0.0),
        13: (1, 1.0),
        14: (1, 0.0),
    }
    assert filled[14] == {
        "lower": pytest.approx(14 / 15),
        "upper": 1.0,
        "images": 1,
        "accuracy": 0.0,
        "confidence": pytest.approx(0.97),
    }
    assert found["most_wrong"] == [
        {"image": 3, "true": "bee", "predicted": "ant", "probability": pytest.approx(0.97)},
        {"image": 1, "true": "ant", "predicted": "bee", "probability": pytest.approx(0.8)},
        {"image": 4, "true": "bee", "predicted": "ant", "probability": 0.5},
    ]


def random_answers(images: int, classes: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images,), generator=generator)
    return labels, torch.softmax(2 * torch.randn(images, classes, generator=generator), dim=1)


def test_calibration_error_is_that_of_the_bins() -> None:
    labels, probabilities = random_answers(1000, 10)
    found = summarise(toy(labels.tolist(), tuple("abcdefghij")), probabilities)
    assert found["ece"] == expected_calibration_error(probabilities, labels) > 0
    gaps = [b["images"] * abs(b["accuracy"] - b["confidence"]) for b in found["calibration_bins"] if b["images"]]
    assert found["ece"] == pytest.approx(sum(gaps) / 1000)


def test_report_is_a_folder_of_pictures_and_their_numbers(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    folder = tmp_path / "new" / "report"
    write_report(folder, metrics, TOY, PROBABILITIES)
    pictures = {"learning_curves.png", *PNGS}
    assert names_in(folder) == pictures | {"report.json"}  # nothing temporary is left
    assert json.loads((folder / "report.json").read_text()) == summarise(TOY, PROBABILITIES)
    for name in pictures:
        picture_of((folder / name).read_bytes())


def test_what_is_not_there_is_not_reported_on(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps(LINE) + "\n")
    write_report(tmp_path / "a", metrics, None, None)
    assert names_in(tmp_path / "a") == {"learning_curves.png"}
    write_report(tmp_path / "b", None, TOY, PROBABILITIES)
    assert names_in(tmp_path / "b") == {"report.json", *PNGS}
    metrics.write_text("")
    write_report(tmp_path / "c", metrics, None, None)
    assert not (tmp_path / "c").exists()


def test_of_very_many_classes_the_report_has_counts_in_place_of_a_matrix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_CLASSES_IN_A_MATRIX", 2)
    monkeypatch.setattr(report, "confusion_matrix", lambda *_: pytest.fail("a confusion matrix"))
    write_report(tmp_path, None, TOY, PROBABILITIES)
    assert names_in(tmp_path) == {"report.json", *PNGS[1:]}
    found = json.loads((tmp_path / "report.json").read_text())
    assert "confusion_matrix" not in found
    assert found["confusions"] == [[0, 0, 1], [0, 1, 1], [1, 0, 2], [1, 1, 1]]
    assert (found["top1"], found["balanced_accuracy"]) == (pytest.approx(2 / 5), pytest.approx(5 / 12))


def test_without_matplotlib_the_numbers_are_written_and_the_extra_is_named(tmp_path: Path, no_matplotlib: None) -> None:
    with pytest.raises(
        MissingExtra, match=r"'plots' .*matplotlib.*: pip install -c constraints.txt -e '\.\[plots\]'"
    ) as caught:
        write_report(tmp_path, None, TOY, PROBABILITIES)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == {"report.json"}


def test_learning_curves_are_the_metrics(drawn: list[Figure]) -> None:
    picture_of(draw_learning_curves(LINES))
    loss, accuracy, rate, speed = drawn[0].axes
    training, held_out = loss.lines[:2]
    assert (list(training.get_xdata()), list(training.get_ydata())) == ([1, 2, 3], [2.0, 1.0, 0.5])
    assert list(held_out.get_ydata()) == [1.5] * 3
    assert [float(line.get_ydata()[0]) for line in accuracy.lines[:2]] == [25.0, 50.0]
    assert list(rate.lines[0].get_ydata()) == [0.1] * 3
    assert list(speed.lines[0].get_ydata()) == [100.0] * 3
    assert "dotted: images of 16 px from epoch 3" in title_of(drawn[0])


def test_learning_curves_of_one_epoch_without_held_out_images(drawn: list[Figure]) -> None:
    picture_of(draw_learning_curves([{k: v for k, v in LINE.items() if not k.startswith("held_out")}]))
    assert "1 epoch" in title_of(drawn[0])
    assert "dotted" not in title_of(drawn[0])
    assert list(drawn[0].axes[0].lines[0].get_ydata()) == [2.0]


def test_confusion_matrix_shows_shares_of_the_true_class(drawn: list[Figure]) -> None:
    picture_of(draw_confusion_matrix(TOY.labels, PROBABILITIES, TOY.classes))
    axes = drawn[0].axes[0]
    shares = np.ma.filled(axes.images[0].get_array(), np.nan)
    np.testing.assert_allclose(shares, [[0.5, 0.5, 0], [2 / 3, 1 / 3, 0], [np.nan] * 3], rtol=1e-6)
    assert [text.get_text() for text in axes.texts] == ["50.0", "50.0", "66.7", "33.3"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["ant", "bee", "cat"]
    assert "no images" in axes.get_ylabel()
    assert "40.00% of 5 images right" in title_of(drawn[0])


@pytest.mark.parametrize(("classes", "numbers", "names"), [(20, True, True), (21, False, True), (130, False, False)])
def test_confusion_matrix_of_many_classes_stays_readable(
    drawn: list[Figure], classes: int, numbers: bool, names: bool
) -> None:
    labels, probabilities = random_answers(500, classes)
    image = picture_of(draw_confusion_matrix(labels, probabilities, tuple(f"class{i}" for i in range(classes))))
    axes = drawn[0].axes[0]
    assert bool(axes.texts) == numbers
    assert ("class7" in [label.get_text() for label in axes.get_xticklabels()]) == names
    assert max(image.size) <= 2000


def test_names_are_shortened_and_are_not_taken_for_formulas(drawn: list[Figure]) -> None:
    names = ("$\\broken{$", "a name that is far too long for a picture")
    dataset = toy([0, 1], names)
    probabilities = torch.tensor([[0.1, 0.9], [0.9, 0.1]])
    picture_of(draw_confusion_matrix(dataset.labels, probabilities, names))
    picture_of(draw_most_wrong(dataset, probabilities))
    assert drawn[0].axes[0].get_xticklabels()[1].get_text() == "a name that is fa…"


def test_reliability_diagram_shows_the_bins(drawn: list[Figure]) -> None:
    labels, probabilities = random_answers(300, 4)
    picture_of(draw_reliability_diagram(labels, probabilities))
    filled = [one for one in map(asdict, calibration_bins(probabilities, labels)) if one["images"]]
    accuracies, gaps = drawn[0].axes[0].containers
    (counts,) = drawn[0].axes[1].containers

    def heights(bars: Any) -> list[float]:
        return [bar.get_height() for bar in bars]

    assert heights(accuracies) == [one["accuracy"] for one in filled]
    assert heights(gaps) == pytest.approx([one["confidence"] - one["accuracy"] for one in filled])
    assert heights(counts) == [one["images"] for one in filled]
    assert sum(heights(counts)) == 300
    assert f"{expected_calibration_error(probabilities, labels):.2%}" in title_of(drawn[0])


def test_most_wrong_shows_the_images_by_confidence(drawn: list[Figure]) -> None:
    picture_of(draw_most_wrong(TOY, PROBABILITIES))
    shown = drawn[0].axes
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in shown] == [3, 1, 4]
    assert [axes.get_title() for axes in shown] == [
        "true: bee\npredicted: ant\n97.0%, image 3",
        "true: ant\npredicted: bee\n80.0%, image 1",
        "true: bee\npredicted: ant\n50.0%, image 4",
    ]


def test_most_wrong_are_called_by_their_files(drawn: list[Figure]) -> None:
    paths = ("0.png", "pets/ant/a $1 photo.png", "2.png", "pets/bee/two\nlines\udcff.png", f"{'long' * 9}.png")
    picture_of(draw_most_wrong(replace(TOY, paths=paths), PROBABILITIES))
    names = [axes.get_title().partition("%, ")[2] for axes in drawn[0].axes]
    assert names == ["two?lines?.png", r"a \$1 photo.png", f"{'long' * 4}l…"]


def test_most_wrong_are_twenty_at_most(drawn: list[Figure]) -> None:
    wrong = torch.tensor([0.2, 0.8]) + torch.linspace(0, 0.1, 23)[:, None] * torch.tensor([-1, 1])
    picture_of(draw_most_wrong(toy([0] * 23, ("ant", "bee")), wrong))
    shown = [int(axes.images[0].get_array()[0, 0, 0]) for axes in drawn[0].axes if axes.images]
    assert shown == list(range(22, 2, -1))


def test_nothing_wrong_is_said(drawn: list[Figure]) -> None:
    picture_of(draw_most_wrong(toy([0, 1]), torch.eye(3)[:2]))
    assert [text.get_text() for text in drawn[0].texts if "None" in text.get_text()] == [
        "None of the 2 images is classified wrongly."
    ]


def test_letters_that_the_font_lacks_are_said_once_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write_report(tmp_path, None, toy([0, 0, 1, 1, 1], ("猫", "犬", "cat")), PROBABILITIES)
    assert names_in(tmp_path) == {"report.json", *PNGS}
    assert caplog.messages == ["matplotlib's font has no letter for 犬 猫: in the pictures there are boxes instead"]


def test_other_warnings_of_drawing_are_still_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def warned(*_: object) -> bytes:
        warnings.warn("something else", UserWarning, stacklevel=1)
        return b""

    monkeypatch.setattr(report, "draw_most_wrong", warned)
    with pytest.warns(UserWarning, match="something else"):
        write_report(tmp_path, None, TOY, PROBABILITIES)


def test_the_most_wrong_are_named_by_their_files_where_they_have_some(tmp_path: Path) -> None:
    paths = (*(f"pictures/ant/{number}.png" for number in range(4)), "pictures/\udcff.png")
    files = replace(TOY, paths=paths)
    write_report(tmp_path, None, files, PROBABILITIES)
    found = json.loads((tmp_path / "report.json").read_text())["most_wrong"]
    assert [(one["image"], one["path"]) for one in found] == [(3, paths[3]), (1, paths[1]), (4, paths[4])]
    part = files.select(torch.tensor([4, 1]), "part")
    assert [one["path"] for one in summarise(part, PROBABILITIES[[4, 1]])["most_wrong"]] == [paths[1], paths[4]]
    assert "path" not in summarise(TOY, PROBABILITIES)["most_wrong"][0]
