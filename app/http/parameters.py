"""What a request asks for besides its images: how many classes, and by when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from starlette.datastructures import QueryParams

from app.errors import BadParameter, BodyTooSlow, DeadlinePassed, ServiceError


def _of_digits(given: object) -> object:
    """Return what pydantic reads an integer from, of texts only what the OpenAPI document allows. Raises ValueError."""
    if isinstance(given, str) and not (given.isascii() and given.isdigit()):
        raise ValueError("no integer")
    return given


Positive = Annotated[int, Field(ge=1), BeforeValidator(_of_digits)]
POSITIVE: TypeAdapter[int] = TypeAdapter(Positive)


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for one request: `deadline` is a time.monotonic(), `top_k` the number of classes to return."""

    deadline: float
    top_k: int


class BodyDeadline(NamedTuple):
    """How many seconds a body may take, and the error that answers a request whose body takes longer."""

    timeout_s: float
    error: ServiceError


@dataclass(frozen=True, slots=True)
class Parameters:
    """The request's own `top_k` and `x-timeout-ms`, None where it has none; `bad` names those that cannot be used."""

    top_k: int | None = None
    x_timeout_ms: int | None = None
    bad: tuple[str, ...] = ()

    @classmethod
    def read(cls, query_string: bytes, x_timeout_ms: bytes | None) -> Parameters:
        """Read them as FastAPI does, without raising yet: a missing key is reported first."""
        texts: dict[str, str | None] = {
            "top_k": QueryParams(query_string).get("top_k") if query_string else None,
            "x-timeout-ms": x_timeout_ms.decode("latin-1") if x_timeout_ms is not None else None,
        }
        numbers = {name: _positive(text) for name, text in texts.items() if text is not None}
        bad = tuple(name for name, number in numbers.items() if number is None)
        return cls(numbers.get("top_k"), numbers.get("x-timeout-ms"), bad)

    def check(self) -> None:
        """Raise BadParameter for what no model could be asked for."""
        if self.bad:
            raise BadParameter.of(self.bad)

    def body_deadline(self, timeout_ms: int, body_timeout_s: float) -> BodyDeadline:
        """Return when the body must be here: after `body_timeout_s`, or at the request's deadline if that comes first.

        A request's deadline is `timeout_ms` at most.
        """
        deadline_s = min(self.x_timeout_ms or timeout_ms, timeout_ms) / 1000
        if deadline_s < body_timeout_s:
            return BodyDeadline(deadline_s, DeadlinePassed())
        return BodyDeadline(body_timeout_s, BodyTooSlow())

    def resolve(self, classes: int, timeout_ms: int, began: float) -> Options:
        """Return what they mean for a model of `classes` classes; the deadline is at most `timeout_ms` after `began`.

        `began` is a time.monotonic(). Raises BadParameter.
        """
        if self.top_k is not None and self.top_k > classes:
            raise BadParameter(f"top_k must be from 1 to {classes}.")
        timeout_ms = min(self.x_timeout_ms or timeout_ms, timeout_ms)
        return Options(began + timeout_ms / 1000, self.top_k or classes)


NO_PARAMETERS = Parameters()


def _positive(text: str) -> int | None:
    """Read an integer of at least 1 as FastAPI does by the same type, or return None."""
    try:
        return POSITIVE.validate_python(text)
    except ValidationError:
        return None
