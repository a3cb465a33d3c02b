"""starting -> ready -> draining -> stopped, or failed from anywhere; and whether a prediction would succeed now."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from enum import StrEnum

log = logging.getLogger(__name__)


class State(StrEnum):
    """Where the service stands in its life."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


class Lifecycle:
    """The state, why it is what it is, and the exit code that follows from it; `was_ready` says if it ever was that.

    `on_failure`, which may be set, is called when it fails.
    """

    def __init__(self) -> None:
        self.state = State.STARTING
        self.reason: str | None = "the model is loading"
        self.was_ready = False
        self.on_failure: Callable[[], None] = lambda: None
        self.started = time.monotonic()
        self._limits: dict[asyncio.Timeout, float] = {}  # and what a failure leaves of each, seconds

    @property
    def uptime_s(self) -> float:
        """Seconds since the process began to start the service."""
        return time.monotonic() - self.started

    @property
    def exit_code(self) -> int:
        """What the process should exit with: 0 after a drain, 1 after a failure."""
        return 1 if self.state is State.FAILED else 0

    @property
    def serving(self) -> bool:
        """Whether requests are answered; draining ones still are."""
        return self.state is State.READY or self.state is State.DRAINING  # asked for each request: no hashing

    def mark_ready(self) -> None:
        """Turn ready, from STARTING alone: the engine is warm and has passed its self-test."""
        if self.state is State.STARTING:
            self.state, self.reason = State.READY, None
            self.was_ready = True
            log.info("ready after %.1f s", self.uptime_s)

    def drain(self) -> None:
        """Turn unready, as the end has been asked for, unless the service has failed; requests are still answered."""
        if self.state is not State.FAILED:
            self.state, self.reason = State.DRAINING, "the service is shutting down"

    def follow(self, state: State, reason: str | None, started: float) -> None:
        """Take over the state of another process, which began at `started`, a time.monotonic(); FAILED stays."""
        if self.state is not State.FAILED:
            self.state, self.reason, self.started = state, reason, started
            self._shorten_after_failure()

    def stop(self) -> None:
        """Note that everything accepted has been answered, unless the service has failed."""
        if self.state is not State.FAILED:
            self.state, self.reason = State.STOPPED, "the service has stopped"

    def watch_over(self, task: asyncio.Task[None]) -> None:
        """Fail the service if a background task raises; otherwise nobody would notice."""
        task.add_done_callback(self._background_ended)

    def _background_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("the task %r has ended", task.get_name(), exc_info=error)
            self.fail(f"the task {task.get_name()!r} died: {type(error).__name__}", "a part of the service has ended")

    def fail(self, reason: str, public_reason: str) -> None:
        """Log in one line what broke for good, turn unready, and ask for the exit; the first time only."""
        if self.state is not State.FAILED:
            log.error("%s", " ".join(reason.split()))
            self.state, self.reason = State.FAILED, public_reason
            self._shorten_after_failure()
            self.on_failure()

    @asynccontextmanager
    async def time_limit(self, limit_s: float | None, *, after_failure_s: float) -> AsyncIterator[None]:
        """Limit what is awaited in the block to `limit_s`, and to `after_failure_s` from a failure on if that is less.

        Raises TimeoutError out of the block.
        """
        async with asyncio.timeout(limit_s) as limit:
            self._limits[limit] = after_failure_s
            self._shorten_after_failure()  # it may have failed before
            try:
                yield
            finally:
                del self._limits[limit]

    def _shorten_after_failure(self) -> None:
        """Shorten what is limited now, if the service has failed."""
        if self.state is State.FAILED:
            for limit, left_s in self._limits.items():
                until, before = asyncio.get_running_loop().time() + left_s, limit.when()
                if not limit.expired() and (before is None or until < before):
                    limit.reschedule(until)
