"""Which of two ways is quicker, in app/backends/measured.py."""

from unittest.mock import Mock

import numpy as np
import pytest

from app.backends import measured


@pytest.mark.parametrize(
    ("slow", "quick", "gain"),
    [([0.02, 0.04], [0.01, 0.04], 2.0), ([0.02, 0.04], [0.04, 0.03], 4 / 3), ([0.01, 0.02], [0.02, 0.04], 0.5)],
)
def test_the_gain_is_what_the_clock_says_that_says_the_most(
    monkeypatch: pytest.MonkeyPatch, slow: list[float], quick: list[float], gain: float
) -> None:
    """Of seconds on the wall and of the processor."""
    baseline, candidate = Mock(), Mock()
    monkeypatch.setattr(measured, "best_times", lambda *_: {baseline: slow, candidate: quick})
    images = np.zeros((1, 3, 32, 32), np.uint8)
    assert measured.speedup(baseline, candidate, images) == pytest.approx(gain)
