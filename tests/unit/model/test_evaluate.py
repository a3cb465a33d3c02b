import json

import pytest
import torch
from torch import nn

from model.batch_sizes import batch_size_for
from model.data import Dataset
from model.evaluate import (
    MAX_BATCH_SIZE,
    CalibrationBin,
    balanced_accuracy,
    calibration_bins,
    compute_logits,
    confusion_matrix,
    confusions,
    expected_calibration_error,
    most_confidently_wrong,
    score,
)
from model.transforms import CIFAR10_MEAN, CIFAR10_STD, normalise


def dataset_of(labels: list[int]) -> Dataset:
    images = torch.zeros(len(labels), 3, 8, 8, dtype=torch.uint8)
    return Dataset("toy", "test", images, torch.tensor(labels), ("cat", "dog"))


def test_calibration_error_equals_a_hand_computed_one() -> None:
    # Two bins. [0.5, 1]: confidences 0.9, 0.7 and 0.8, two of three right. [0, 0.5): confidence 0.4, wrong.
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    labels = torch.tensor([0, 0, 2, 1])
    expected = 3 / 4 * abs(2 / 3 - 0.8) + 1 / 4 * abs(0 - 0.4)
    assert expected_calibration_error(probabilities, labels, bins=2) == pytest.approx(expected, abs=1e-6)


def test_gaps_of_opposite_sign_do_not_cancel_between_bins() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1]])
    labels = torch.tensor([0, 1])  # too modest, then too sure
    assert expected_calibration_error(probabilities, labels, bins=10) == pytest.approx((0.4 + 0.9) / 2, abs=1e-6)
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(0.25, abs=1e-6)


def test_certain_and_right_is_perfectly_calibrated() -> None:
    assert expected_calibration_error(torch.eye(3), torch.arange(3)) == 0


def test_score_of_a_toy() -> None:
    probabilities = torch.tensor([[0.8, 0.2], [0.4, 0.6], [0.5, 0.5], [0.1, 0.9]])
    scores = score(probabilities, dataset_of([0, 0, 0, 1]))
    assert (scores.split, scores.images) == ("toy test", 4)
    assert scores.top1 == 0.75
    assert scores.nll == pytest.approx(-torch.tensor([0.8, 0.4, 0.5, 0.9]).log().mean().item(), abs=1e-6)
    assert scores.per_class == {"cat": pytest.approx(2 / 3), "dog": 1.0}
    assert scores.balanced_accuracy == pytest.approx(5 / 6)


def test_class_without_images_has_no_share() -> None:
    scores = score(torch.tensor([[0.9, 0.1]]), dataset_of([0]))
    assert scores.per_class == {"cat": 1.0, "dog": None}
    assert scores.balanced_accuracy == 1.0
    json.dumps(scores.to_dict(), allow_nan=False)


def test_score_of_an_impossible_label_is_finite() -> None:
    assert score(torch.tensor([[1.0, 0.0]]), dataset_of([1])).nll == pytest.approx(27.6, abs=0.1)


def test_compute_logits_normalises_and_keeps_the_order_over_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("model.evaluate.batch_size_for", lambda _side, _most: 3)
    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    expected = network(normalise(images, torch.tensor(CIFAR10_MEAN), torch.tensor(CIFAR10_STD)))
    logits = compute_logits(network, images, CIFAR10_MEAN, CIFAR10_STD)
    torch.testing.assert_close(logits, expected.detach())


def test_calibration_bins_equal_hand_computed_ones() -> None:
    probabilities = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [1.0, 0.0]], dtype=torch.double)
    bins = calibration_bins(probabilities, torch.tensor([0, 1, 1, 0]), bins=4)
    empty = [CalibrationBin(0.0, 0.25, 0, None, None), CalibrationBin(0.25, 0.5, 0, None, None)]
    assert bins == [
        *empty,
        CalibrationBin(0.5, 0.75, 1, 0.0, pytest.approx(0.7)),
        CalibrationBin(0.75, 1.0, 3, 1.0, pytest.approx(0.9)),
    ]


def test_confusion_matrix_counts_true_classes_in_rows() -> None:
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.1, 0.8, 0.1], [0.3, 0.4, 0.3]])
    counts = confusion_matrix(probabilities, torch.tensor([0, 0, 1, 2]))
    assert counts.tolist() == [[1, 1, 0], [0, 1, 0], [0, 1, 0]]
    assert counts.dtype == torch.int64


def test_who_always_answers_the_commonest_class_has_a_balanced_accuracy_by_chance() -> None:
    labels = torch.tensor([0] * 1000 + [1] * 10)
    assert balanced_accuracy(torch.tensor([[0.8, 0.1, 0.1]]).expand(1010, -1), labels) == 0.5


def test_scores_of_many_classes_need_no_room_for_each_two_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 65,535 a confusion matrix takes 34 GB, in each epoch that has held-out images."""
    monkeypatch.setattr("model.evaluate.confusion_matrix", lambda *_: pytest.fail("a confusion matrix"))
    classes = tuple(map(str, range(65_535)))
    dataset = Dataset("toy", "test", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([7, 65_534]), classes)
    answers = torch.zeros(2, 65_535)
    answers[[0, 1], [7, 3]] = 1.0
    found = score(answers, dataset)
    assert (found.top1, found.balanced_accuracy) == (0.5, 0.5)
    assert {name: share for name, share in found.per_class.items() if share is not None} == {"7": 1.0, "65534": 0.0}


def test_confusions_are_what_is_not_zero_of_the_matrix() -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities, labels = torch.rand(200, 9, generator=generator), torch.randint(0, 9, (200,), generator=generator)
    counts = confusion_matrix(probabilities, labels)
    expected = [[*place, int(counts[tuple(place)])] for place in counts.nonzero().tolist()]
    assert confusions(probabilities, labels).tolist() == expected


def test_most_confidently_wrong_are_sorted_and_equal_ones_keep_their_order() -> None:
    probabilities = torch.tensor([[0.6, 0.4], [0.9, 0.1], [0.6, 0.4], [0.8, 0.2], [0.3, 0.7]])
    labels = torch.tensor([1, 0, 1, 1, 0])
    assert most_confidently_wrong(probabilities, labels, 9).tolist() == [3, 4, 0, 2]
    assert most_confidently_wrong(probabilities, labels, 3).tolist() == [3, 4, 0]
    assert most_confidently_wrong(probabilities, probabilities.argmax(dim=1), 3).tolist() == []


@pytest.mark.parametrize(
    ("side", "size", "at_once"),
    [(8, None, [500, 1]), (64, None, [500, 1]), (128, None, [125, 125, 125, 125, 1]), (8, 160, [80] * 6 + [21])],
)
def test_as_many_images_are_computed_at_once_as_suit_their_side(
    side: int, size: int | None, at_once: list[int]
) -> None:
    """Five hundred pictures of 224 pixels need twelve times the memory of as many with 64."""
    seen: list[int] = []
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    images = torch.zeros(1, 3, side, side, dtype=torch.uint8).expand(501, -1, -1, -1)
    assert len(compute_logits(network, images, CIFAR10_MEAN, CIFAR10_STD, size=size)) == 501
    assert seen == at_once


def test_of_the_largest_images_at_least_one_is_computed_at_once() -> None:
    assert [batch_size_for(side, MAX_BATCH_SIZE) for side in (224, 512, 2048)] == [40, 7, 1]
    assert [batch_size_for(side, 250, least=8) for side in (32, 224, 512)] == [250, 20, 8]


def test_there_may_be_no_images_to_compute() -> None:
    """A process' share of a few held-out ones."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    images = torch.zeros(0, 3, 4, 4, dtype=torch.uint8)
    assert compute_logits(network, images, CIFAR10_MEAN, CIFAR10_STD).shape == (0, 5)


@pytest.mark.parametrize("before", [True, False])
def test_float32_is_not_tf32_and_whoever_trains_keeps_what_there_was(
    monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", before)
    seen: list[bool] = []
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    compute_logits(network, torch.zeros(3, 3, 2, 2, dtype=torch.uint8), (0.5,) * 3, (0.5,) * 3)
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32 is before
