"""How a target is judged by the files of evidence: the figure that a machine reached, and whether that is enough."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from benchmarks.records import read

CUDA = "engine_cuda.json"
JUDGED_GPUS = ("H100", "H200")  # the targets are for the first; the second has the same processor, and faster memory
MIN_ROUNDS = 5  # one or two of fewer, and the median is what the machine happened to do


class Verdict(Enum):
    """Whether a target is met."""

    MET = "met"
    MISSED = "**missed**"
    TOO_FEW = "too few rounds"
    NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Target:
    """A target: `figure` finds the figure in the file `evidence`; `form` is the format of figure and limit."""

    what: str
    evidence: str
    figure: Callable[[dict[str, Any]], float | None]
    at_least: float | None = None
    at_most: float | None = None
    form: str = ".2f"

    def reached(self, folder: Path) -> float | None:
        """Return the figure of the files in `folder`, or None if it is not there or is of a GPU without a target.

        Not everything is measured everywhere: a record of another device has other contenders.
        """
        try:
            one = read(self.evidence, folder)
            return None if self.evidence == CUDA and judged_gpu(one) is None else self.figure(one)
        except (FileNotFoundError, KeyError):
            return None

    def compare(self, figure: float | None) -> Verdict:
        """Compare a figure with the limit; NaN has missed it."""
        if figure is None:
            return Verdict.NOT_MEASURED
        enough = self.at_least is None or figure >= self.at_least
        little = self.at_most is None or figure <= self.at_most
        return Verdict.MET if enough and little else Verdict.MISSED

    def judge(self, folder: Path) -> Verdict:
        """Compare what the files in `folder` reached with the limit; a limit met in too few rounds is not met."""
        verdict = self.compare(self.reached(folder))
        if verdict == Verdict.MET:
            rounds = rounds_of(read(self.evidence, folder))
            if rounds is not None and rounds < MIN_ROUNDS:
                return Verdict.TOO_FEW
        return verdict

    def asked(self) -> str:
        """Return the limit as text."""
        if self.at_least is not None:
            return f"at least {self.at_least:{self.form}}"
        return f"at most {self.at_most:{self.form}}"


def rounds_of(one: dict[str, Any]) -> int | None:
    """Return how many rounds a record has, the fewest of its parts; None if it is not one of rounds."""
    several = one.get("rounds", one.get("rounds_s"))
    several = one.get("shares_of_engine_rate") if several is None else several
    return None if several is None else _fewest(several)


def _fewest(several: Any) -> int:  # noqa: ANN401 - whatever a record has: rounds, or rounds by name, or by two
    """Return the length of a list, of those by name the shortest."""
    return min(map(_fewest, several.values()), default=0) if isinstance(several, dict) else len(several)


def judged_gpu(one: dict[str, Any]) -> str | None:
    """Return the name of a record's GPU if it is one that the targets are for."""
    gpu = str(one["machine"]["gpu"])
    return gpu if any(name in gpu for name in JUDGED_GPUS) else None
