"""What a checkpoint says of itself is believed only within bounds."""

from typing import Any

import pytest
from pydantic import ValidationError

from model.metadata import Metadata

GOOD: dict[str, Any] = {
    "name": "resnet18-two",
    "architecture": {"num_classes": 2},
    "classes": ("cat", "dog"),
    "input_size": 32,
    "mean": (0.5, 0.5, 0.5),
    "std": (0.25, 0.25, 0.25),
}


def test_what_is_within_bounds_is_taken() -> None:
    for size in (8, 1024):
        assert Metadata(**GOOD | {"input_size": size, "self_test_tolerance": 0.49}).input_size == size


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input_size", 7),
        ("input_size", 1025),
        ("std", (0.25, 0.0, 0.25)),
        ("temperature", 0.0),
        ("calibration_exponent", 0.0),
        ("self_test_tolerance", 0.0),
        ("self_test_tolerance", 0.5),
        ("classes", ("cat", "dog", "eel")),
        ("format", 2),
        ("colour", "red"),
    ],
)
def test_what_is_beyond_bounds_or_unknown_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError):
        Metadata(**GOOD | {field: value})
