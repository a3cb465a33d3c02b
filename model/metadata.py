"""What a checkpoint says of itself, and how one is refused. Nothing here needs torch."""

from __future__ import annotations

import unicodedata
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from model.architecture import Architecture, NetworkSpec
from model.calibration import Calibration
from model.transforms import MAX_INPUT_SIDE, MIN_SIDE, Triple

FORMAT: Literal[1] = 1

SYNTHETIC = "synthetic"  # what `dataset` says under "self_test" where the images of that are no pictures

# Unicode's categories of control characters, surrogates, and separators of lines and paragraphs.
UNPRINTABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


MAX_MESSAGE = 500  # characters
MAX_CLASS_NAME = 200  # characters
MAX_CLASSES = 65_535  # each has counters of its own, and HTTP processes get their number in sixteen bits
DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # embeddings, overrides, isolates


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the message names the file and the reason in one line."""

    def __init__(self, message: str) -> None:
        # A damaged or hostile file's own names may hold line breaks, codes for terminals, or a novel.
        line = "".join(letter if letter.isprintable() else "?" for letter in " ".join(message.splitlines()))
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[:MAX_MESSAGE]} ...")


def is_class_name(name: str) -> bool:
    """Return whether a class can be called so: something is seen of it, and it can be printed.

    Control characters, line separators, and what is not Unicode would break logs, metrics and JSON; what turns the
    direction of writing would make a name look like another one.
    """
    characters = set(name)
    unprintable = {unicodedata.category(character) for character in characters} & UNPRINTABLE
    return bool(name.strip()) and len(name) <= MAX_CLASS_NAME and not unprintable and not characters & DIRECTIONS


class Metadata(BaseModel):
    """What a checkpoint says of itself. Shares are fractions of one, `nll` is in nats."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    format: Literal[1] = FORMAT
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    architecture: dict[str, Any]
    classes: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_CLASSES)]
    input_size: Annotated[int, Field(ge=MIN_SIDE, le=MAX_INPUT_SIDE)]
    mean: Triple
    std: tuple[
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
        Annotated[float, Field(gt=0)],
    ]
    temperature: Annotated[float, Field(gt=0)] = 1.0
    calibration_exponent: Annotated[float, Field(gt=0)] = 1.0
    temperature_fitted_on: str = "not fitted"
    measured: tuple[dict[str, Any], ...] = ()
    dataset: dict[str, Any] = Field(default_factory=dict)
    recipe: dict[str, Any] = Field(default_factory=dict)
    epochs: int = 0
    seed: int = 0
    libraries: dict[str, str] = Field(default_factory=dict)
    created: str = ""
    self_test_tolerance: Annotated[float, Field(gt=0, lt=0.5)] = 0.05

    @field_validator("classes")
    @classmethod
    def _classes_can_be_told_apart(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        for name in classes:
            if not is_class_name(name):
                raise ValueError(f"{name[:60]!r} is no name for a class: it is blank, too long, or cannot be printed")
        for before, name in pairwise(sorted(unicodedata.normalize("NFC", name) for name in classes)):
            if name == before:
                raise ValueError(f"two classes are called {name[:60]!r}")
        return classes

    @model_validator(mode="after")
    def _classes_match_the_head(self) -> Metadata:
        classes = self.architecture.get("num_classes")
        if classes != len(self.classes):
            raise ValueError(f"{len(self.classes)} class names for a network of {classes} classes")
        return self

    @model_validator(mode="after")
    def _can_be_shown(self) -> Metadata:
        """GET /model shows it as JSON, which has no halves of surrogate pairs and is not nested without end."""
        try:
            self.model_dump_json()
        except (ValueError, RecursionError) as error:
            raise ValueError("it is no JSON: nested too deeply, or with a text that is not Unicode") from error
        return self

    @property
    def has_synthetic_self_test(self) -> bool:
        """Whether the self-test's images were made for it, and are none of the pictures that it was trained with."""
        return self.dataset.get("self_test") == SYNTHETIC

    @property
    def calibration(self) -> Calibration:
        """What turns the network's logits into probabilities."""
        return Calibration(self.temperature, self.calibration_exponent)

    def network_spec(self) -> NetworkSpec:
        """Return the layers that the tensors belong to. Raises ValueError for an unknown architecture or option."""
        return Architecture.from_dict(self.architecture).network_spec()
