"""Whether clients come back as soon as they are answered: then it pays for the next batch to wait for them.

Clients that wait for an answer before they ask again, be it a load generator or a pool of connections, would fall into
two halves: one is computed while the other one is answered. Each batch has half the size then, and is computed beside
the work for the other half. Together they are computed in fewer batches, and the event loop has the cores to itself in
between. Clients that ask when they please are not waited for: how many came soon after former batches is counted.
"""

from __future__ import annotations

# A client that asks within half a batch's time after a batch has come back. Of requests at random times, no more than
# half do.
RETURN_WINDOW = 0.5

# This share of the answered images has to have come back, by a mean in which the last batch weighs EMA_WEIGHT.
MIN_RETURN_SHARE = 0.75
EMA_WEIGHT = 0.2

# They are waited for PATIENCE times as long as they took before, and SLACK_S more, but half a batch's time at most.
PATIENCE = 1.5
SLACK_S = 0.0005

# With quicker batches little can be gained, and the clocks of event loops tick as slowly.
MIN_BATCH_S = 0.001


class ReturningClients:
    """Counts images that come soon after a batch's end; times are those of time.monotonic()."""

    def __init__(self) -> None:
        self._share = 0.0
        self._takes_s = 0.0
        self._answered = 0
        self._came = 0
        self._ended = 0.0
        self._soon = 0.0  # the end of the time that counts
        self._last = 0.0  # when the last one came

    @property
    def expected(self) -> bool:
        """Whether clients come back as soon as they are answered."""
        return self._share >= MIN_RETURN_SHARE

    def batch_ended(self, answered: int, seconds: float, now: float) -> None:
        """Judge by the last batch, and begin to count after this one: of `answered` images, computed in `seconds`."""
        if self._answered:
            share = min(1.0, self._came / self._answered)
            self._share += EMA_WEIGHT * (share - self._share)
            if self._came:
                self._takes_s += EMA_WEIGHT * (self._last - self._ended - self._takes_s)
        self._answered = answered if seconds >= MIN_BATCH_S else 0
        self._came = 0
        self._ended, self._soon = now, now + max(RETURN_WINDOW * seconds, MIN_BATCH_S)

    def came(self, images: int, now: float) -> None:
        """Count images that come."""
        if now < self._soon and self._came < self._answered:
            self._came += images
            self._last = now

    def awaited(self) -> tuple[int, float]:
        """Return how many images of those that were answered last have yet to come back, and until when at most."""
        if not self.expected:
            return 0, self._ended
        return max(0, self._answered - self._came), min(self._soon, self._ended + PATIENCE * self._takes_s + SLACK_S)
