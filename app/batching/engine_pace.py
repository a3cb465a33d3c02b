"""How quick the engine is, learned from the batches that it computes."""

from __future__ import annotations

# The last full batch's weight in the mean.
EMA_WEIGHT = 0.1


class EnginePace:
    """`images_per_s` in full batches, and `batch_s`, what the last batch took; both 0 while nothing is known.

    A guess at the rate, made before there was any batch, counts until a batch is full or beats it. So does the rate of
    the engine before, when another one takes over.
    """

    def __init__(self, guessed_images_per_s: float = 0.0) -> None:
        self.images_per_s = guessed_images_per_s
        self.batch_s = 0.0
        self._is_guess = True

    def engine_exchanged(self) -> None:
        """Take what is known for a guess: another network may take many times as long."""
        self._is_guess = True

    def batch_ended(self, count: int, seconds: float, *, full: bool) -> None:
        """Learn from a batch of `count` images; `full` if no batch may be larger.

        A queue is worked off in full batches, so the rate is theirs. A smaller one counts only if it beats the known
        rate: with too low a rate no full batch would be let in, and it would never be corrected.
        """
        each_s = seconds / count
        counts = full or 0 < each_s * self.images_per_s < 1
        if counts and self._is_guess:
            self.images_per_s = 1 / each_s
            self._is_guess = not full
        elif counts:
            # The mean of the times, not of the rates: a few fast batches must not hide the slow ones between them.
            self.images_per_s = 1 / ((1 - EMA_WEIGHT) / self.images_per_s + EMA_WEIGHT * each_s)
        self.batch_s = seconds
