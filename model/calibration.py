"""From logits to probabilities that mean what they say: of the answers given with 80 %, about 80 % are right.

Temperature scaling divides all logits by one number. A network trained with label smoothing needs more: at the
temperature that is right for its surest answers, the less sure ones are too sure. So a power comes first, of the
surprisal: with s = -log softmax(logits), the probabilities are softmax(-s ** exponent / temperature). Exponent 1 is
plain temperature scaling. Both are monotone, so that no answer changes, only how sure it is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:  # what is calibrated in NumPy needs no torch, which takes two seconds and hundreds of MB
    from torch import Tensor

FITTED_TEMPERATURE_BOUNDS = (0.2, 10.0)
FITTED_EXPONENT_BOUNDS = (0.5, 3.0)

# Of the normal prior of log(temperature), whose mean is 0: two in three temperatures lie in 0.6 to 1.65.
# A few thousand images outweigh it, ten do not.
LOG_TEMPERATURE_PRIOR_STD = 0.5

# Two numbers fitted on fewer images than this would say more of the images than of the network.
MIN_IMAGES_FOR_EXPONENT = 1000


@dataclass(frozen=True)
class Calibration:
    """The two numbers, both above 0."""

    temperature: float = 1.0
    exponent: float = 1.0

    def probabilities(self, logits: Tensor) -> Tensor:
        """Map logits, float (N, classes), to calibrated probabilities of the same shape and dtype."""
        import torch

        if self.exponent == 1.0:
            return torch.softmax(logits / self.temperature, dim=1)
        surprisal = -torch.log_softmax(logits, dim=1)
        return torch.softmax(-(surprisal**self.exponent) / self.temperature, dim=1)

    def probabilities_numpy(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Do the same in NumPy, for float32 (N, classes) that an engine has just computed.

        torch would wake its threads for it, which then spin for a while on the cores that the engine wants for its next
        batch: one of eight took 1.4 times as long.
        """
        if self.exponent == 1.0:
            return _softmax(logits / np.float32(self.temperature))
        shifted = logits - logits.max(axis=1, keepdims=True)
        surprisal = np.log(np.exp(shifted).sum(axis=1, keepdims=True)) - shifted
        return _softmax(-(surprisal ** np.float32(self.exponent)) / np.float32(self.temperature))


def _softmax(values: NDArray[np.float32]) -> NDArray[np.float32]:
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    probabilities: NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def fit_calibration(logits: Tensor, labels: Tensor) -> Calibration:
    """Fit temperature and exponent (maximum a posteriori); of few images the temperature alone, with exponent 1.

    `logits` float (N, classes), `labels` int64 (N,), both of images that the network was not trained on. Temperature
    scaling: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599; the exponent is our own, and
    so is that temperatures near 1 are taken to be likelier beforehand (see LOG_TEMPERATURE_PRIOR_STD): ten images that
    are all classified rightly would ask for temperature 0, which says that there are too few of them, and nothing of
    the network. Both numbers stay within bounds. Where the fit of both ends in no
    numbers, as it may for enormous logits, it is the temperature's alone.
    """
    import torch

    surprisal = -torch.log_softmax(logits.double(), dim=1).clamp_max(-1e-12)  # whose power has a gradient everywhere
    free = _fit(surprisal, labels) if len(labels) >= MIN_IMAGES_FOR_EXPONENT else None
    if free is not None and _within_bounds(free) == free:
        return free
    found = [_within_bounds(_fit(surprisal, labels, exponent=1.0))]
    if free is None or not (math.isfinite(free.temperature) and math.isfinite(free.exponent)):
        return found[0]
    # Each number belongs to the other: where one has to stay at its bound, the other is fitted to that one.
    bounded = _within_bounds(free)
    if bounded.temperature != free.temperature:
        edge = _within_bounds(_fit(surprisal, labels, temperature=bounded.temperature))
        found += [edge, _within_bounds(_fit(surprisal, labels, exponent=edge.exponent))]
    if bounded.exponent != free.exponent:
        found.append(_within_bounds(_fit(surprisal, labels, exponent=bounded.exponent)))
    return min(found, key=lambda fitted: _loss_of(fitted, surprisal, labels))


def _fit(
    surprisal: Tensor, labels: Tensor, *, temperature: float | None = None, exponent: float | None = None
) -> Calibration:
    """Fit what is not given of the two numbers, without bounds; they may come out as infinite or nan."""
    import torch

    given = [None if value is None else math.log(value) for value in (temperature, exponent)]
    logarithms = [torch.tensor(value or 0.0, dtype=torch.double, requires_grad=value is None) for value in given]
    optimiser = torch.optim.LBFGS(
        [logarithm for logarithm in logarithms if logarithm.requires_grad], max_iter=200, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _loss(logarithms[0], logarithms[1], surprisal, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return Calibration(*(float(logarithm.detach().exp()) for logarithm in logarithms))


def _loss(log_temperature: Tensor, log_exponent: Tensor, surprisal: Tensor, labels: Tensor) -> Tensor:
    """Return what is minimised: the negative log of the posterior, in nats per image."""
    from torch.nn import functional

    powered = -(surprisal ** log_exponent.exp()) / log_temperature.exp()
    prior = (log_temperature / LOG_TEMPERATURE_PRIOR_STD) ** 2 / 2
    return functional.cross_entropy(powered, labels) + prior / len(labels)


def _loss_of(calibration: Calibration, surprisal: Tensor, labels: Tensor) -> float:
    """Return `_loss` of two numbers, infinite where it is no number."""
    import torch

    logarithms = torch.tensor([calibration.temperature, calibration.exponent], dtype=torch.double).log()
    loss = float(_loss(logarithms[0], logarithms[1], surprisal, labels))
    return loss if math.isfinite(loss) else math.inf


def _within_bounds(found: Calibration) -> Calibration:
    """Bring both numbers within their bounds; for no number take 1, which changes nothing."""
    return Calibration(
        _within(FITTED_TEMPERATURE_BOUNDS, found.temperature), _within(FITTED_EXPONENT_BOUNDS, found.exponent)
    )


def _within(bounds: tuple[float, float], value: float) -> float:
    lowest, highest = bounds
    if math.isnan(value):
        return 1.0
    return min(max(value, lowest), highest)
