"""What the log says of an outage: that the service is not ready, and why; that it is again; how much it refused.

Probes and metrics say so as well, to whoever asks in time. Here it is written down, by looking from time to time: no
request pays for it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from app.errors import TOO_MANY_CONNECTIONS, UNREAD_RESPONSE
from app.lifecycle import Lifecycle, State
from app.telemetry import KINDS, Telemetry

log = logging.getLogger(__name__)

LOOK_S = 0.5

# Who is refused again and again fills no log.
SUMMARY_S = 10.0

# What the service could not do for a request that may have been a good one. Bad requests are their senders' business,
# and an internal error has a line of its own.
TOLD = [kind.code for kind in KINDS if kind.status in {429, 503, 504}] + [TOO_MANY_CONNECTIONS, UNREAD_RESPONSE]


class OutageLog:
    """Looks at a service that is ready by its `lifecycle`, and at what its `telemetry` has counted as refused.

    `unready_reason` says why a prediction would fail all the same. Each line begins with `whose`.
    """

    def __init__(
        self, lifecycle: Lifecycle, telemetry: Telemetry, unready_reason: Callable[[], str | None], whose: str = ""
    ) -> None:
        self._lifecycle = lifecycle
        self._telemetry = telemetry
        self._unready_reason = unready_reason
        self._whose = whose
        self._reason: str | None = None
        self._unready_since: float | None = None
        self._refused = telemetry.refusals()
        self._summed_up = time.monotonic()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, in a task of its own."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="outages")
        self._lifecycle.watch_over(self._task)

    async def stop(self) -> None:
        """End that, with what there is still to be told."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        try:
            while True:
                await asyncio.sleep(LOOK_S)
                self.look(time.monotonic())
        finally:
            self.sum_up(time.monotonic())

    def look(self, now: float) -> None:
        """Write what has changed by `now`, a time.monotonic()."""
        if self._lifecycle.state is State.READY:  # other states, and how they came about, have lines of their own
            self._look_at_readiness(now)
        if now - self._summed_up >= SUMMARY_S:
            self.sum_up(now)

    def _look_at_readiness(self, now: float) -> None:
        reason = self._unready_reason()
        if reason is None:
            if self._reason is not None and self._unready_since is not None:
                log.info("%sready again after %.1f s", self._whose, now - self._unready_since)
            self._reason, self._unready_since = None, None
        elif self._unready_since is None:  # once: after a pause of the whole process all seems to have hung
            self._unready_since = now
        elif reason != self._reason:
            log.warning("%snot ready: %s", self._whose, reason)
            self._reason = reason

    def sum_up(self, now: float) -> None:
        """Write one line of what has been refused since the last time, if anything was."""
        counts = self._telemetry.refusals()
        new = {reason: int(counts[reason] - self._refused[reason]) for reason in TOLD}
        told = ", ".join(
            f"{count} {reason}" for reason, count in sorted(new.items(), key=lambda item: -item[1]) if count
        )
        if told:
            log.warning("%srefused in the last %.0f s: %s", self._whose, max(1, now - self._summed_up), told)
        self._refused, self._summed_up = counts, now
