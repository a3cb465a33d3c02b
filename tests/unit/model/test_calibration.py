import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from model.calibration import Calibration, fit_calibration
from model.evaluate import expected_calibration_error


def overconfident(scale: float) -> tuple[Tensor, Tensor]:
    """Draw labels from softmax(z) and return scale * z with them: the right temperature is `scale`."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator)
    labels = torch.multinomial(torch.softmax(logits, dim=1), 1, generator=generator)[:, 0]
    return scale * logits, labels


def power_distorted(count: int = 20_000) -> tuple[Tensor, Tensor]:
    """Draw labels from known probabilities, and return logits whose surprisals are about their power 1 / 1.5."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.softmax(3 * torch.randn(count, 10, generator=generator, dtype=torch.double), dim=1)
    labels = torch.multinomial(truth, 1, generator=generator)[:, 0]
    surprisal = -torch.log(truth)
    distorted = -((surprisal / 0.7) ** (1 / 1.5))
    return distorted, labels


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_known_temperature_is_recovered(temperature: float) -> None:
    found = fit_calibration(*overconfident(temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.06)
    assert found.exponent == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("label", "least", "most"), [(0, 0.8, 1.0), (1, 1.0, 2.5)])
@pytest.mark.parametrize("count", [1, 10])
def test_a_few_images_that_are_all_right_or_wrong_say_little(count: int, label: int, least: float, most: float) -> None:
    logits = torch.tensor([[3.0, 0.0], [4.0, 0.0]])[torch.arange(count) % 2]
    found = fit_calibration(logits, torch.full((count,), label))
    assert least / count**0.3 < found.temperature < most * count**0.3
    assert found.exponent == 1.0


def test_a_few_images_do_not_make_a_calibrated_network_worse() -> None:
    logits, labels = overconfident(1.0)
    nlls = []
    for start in range(0, 2000, 10):
        found = fit_calibration(logits[start : start + 10], labels[start : start + 10])
        nlls.append(functional.cross_entropy(logits / found.temperature, labels))
    before = functional.cross_entropy(logits, labels)
    assert torch.stack(nlls).mean() < 1.05 * before


def test_a_temperature_suits_the_exponent_that_is_kept() -> None:
    """Of images, a few of which have a wrong label, the likeliest exponent lies beyond the bounds."""
    generator = torch.Generator().manual_seed(0)
    margins = 8 + 2 * torch.randn(4000, generator=generator)
    logits = torch.stack([margins, torch.zeros(4000)], dim=1)
    labels = (torch.rand(4000, generator=generator) < 0.02).long()
    found = fit_calibration(logits, labels)
    assert found.exponent == pytest.approx(0.5)
    nll = functional.nll_loss(found.probabilities(logits).log(), labels)
    for other in (0.8, 1.25):
        calibration = Calibration(found.temperature * other, found.exponent)
        assert functional.nll_loss(calibration.probabilities(logits).log(), labels) > nll


@pytest.mark.parametrize(("exponent", "temperature"), [(2.9, 30.0), (0.55, 0.05)])
def test_an_exponent_suits_the_temperature_that_is_kept(exponent: float, temperature: float) -> None:
    """Of labels drawn from softmax(-s^g / T), whose T lies beyond the bounds."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5000, 10, generator=generator, dtype=torch.double)
    truth = Calibration(temperature, exponent).probabilities(logits)
    labels = torch.multinomial(truth, 1, generator=generator)[:, 0]
    found = fit_calibration(logits, labels)
    assert found.temperature == pytest.approx(10.0 if temperature > 1 else 0.2)
    nll = functional.nll_loss(found.probabilities(logits).log(), labels)
    assert nll < 1.04 * functional.nll_loss(truth.log(), labels)
    for other in (0.9, 1.1):
        calibration = Calibration(found.temperature, found.exponent * other)
        assert functional.nll_loss(calibration.probabilities(logits).log(), labels) > nll


@pytest.mark.parametrize(
    ("scale", "count", "classes", "seed"), [(500, 1000, 3, 1), (700, 1000, 10, 0), (1e4, 1000, 100, 1)]
)
def test_enormous_logits_that_are_all_right_end_in_numbers(scale: float, count: int, classes: int, seed: int) -> None:
    logits = scale * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    found = fit_calibration(logits, logits.argmax(dim=1))
    assert 0.2 <= found.temperature <= 10
    assert 0.5 <= found.exponent <= 3
    assert bool(found.probabilities(logits).isfinite().all())


def test_exponent_mends_what_a_temperature_cannot() -> None:
    logits, labels = power_distorted()
    found = fit_calibration(logits, labels)
    assert found.exponent > 1.2
    by_temperature = fit_calibration(logits[:999], labels[:999])
    assert by_temperature.exponent == 1.0
    mended, halfway = (one.probabilities(logits) for one in (found, by_temperature))
    assert expected_calibration_error(mended, labels) < 0.01 < 0.013 < expected_calibration_error(halfway, labels)


@pytest.mark.parametrize("calibration", [Calibration(0.5), Calibration(3.0, 1.7), Calibration(0.4, 0.6)])
def test_no_answer_changes(calibration: Calibration) -> None:
    logits = 4 * torch.randn(500, 10, generator=torch.Generator().manual_seed(1))
    before, after = torch.softmax(logits, dim=1), calibration.probabilities(logits)
    torch.testing.assert_close(after.sum(dim=1), torch.ones(500))
    assert torch.equal(before.argsort(dim=1), after.argsort(dim=1))


def test_exponent_one_is_temperature_scaling() -> None:
    logits = 4 * torch.randn(500, 10, generator=torch.Generator().manual_seed(1))
    expected = torch.softmax(logits / 1.7, dim=1)
    torch.testing.assert_close(Calibration(1.7).probabilities(logits), expected)
    torch.testing.assert_close(Calibration(1.7, 1.0 + 1e-9).probabilities(logits), expected, rtol=1e-4, atol=1e-6)


def test_certain_logits_give_finite_probabilities() -> None:
    logits = torch.tensor([[200.0, 0.0, -200.0]])
    assert bool(Calibration(0.7, 1.6).probabilities(logits).isfinite().all())
    labels = torch.zeros(1000, dtype=torch.int64)
    found = fit_calibration(logits.expand(1000, 3), labels)
    assert 0.2 <= found.temperature <= 10
    assert 0.5 <= found.exponent <= 3


@pytest.mark.parametrize("calibration", [Calibration(), Calibration(1.7), Calibration(0.6, 1.4)])
def test_numpy_gives_what_torch_gives(calibration):
    logits = 30 * torch.randn(7, 10, generator=torch.Generator().manual_seed(0))
    logits[0, 0] = 300.0
    expected = calibration.probabilities(logits)
    found = calibration.probabilities_numpy(logits.numpy())
    assert found.dtype == np.float32
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-6, rtol=1e-4)
