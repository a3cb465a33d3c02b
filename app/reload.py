"""The checkpoint file loaded again while the old engine serves, and the exchange of the two without a gap.

SIGHUP -> load and verify the file, self-test, warm-up, in a thread beside the serving one -> compare with what is
served -> swap between two batches -> release the old engine. Whatever goes wrong before the swap leaves all as it was.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from enum import StrEnum

from app.batching.batches import EngineOutOfMemory
from app.engine import Engine, EngineUnavailable, SelfTestFailed
from app.memory import give_back_memory
from app.parts import EngineParts
from app.telemetry import Telemetry
from app.threads import in_thread
from model.metadata import CheckpointError

log = logging.getLogger(__name__)

# Clients rely on them, and the images in the queue have that size already.
FIXED = ("classes", "input_size")


# So long the end of a service waits for an engine that it has loaded and does not need.
LET_GO_S = 5.0


class Outcome(StrEnum):
    """How a reload ended; also the metric's label."""

    SUCCEEDED = "succeeded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


class Refused(Exception):
    """The new checkpoint must not replace the old one; the message says why, in one line."""


class Reloader:
    """Runs one reload at a time and remembers how the last one ended.

    `load` returns a warm, tested engine; it runs in a thread of `pool`, and so does what frees memory.
    """

    def __init__(self, load: Callable[[], Engine], pool: Executor, telemetry: Telemetry) -> None:
        self._load = load
        self._pool = pool
        self._telemetry = telemetry
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self.finished = 0
        self.outcome: Outcome | None = None
        self.ended_at: datetime | None = None
        for outcome in Outcome:
            telemetry.reloads.labels(outcome)

    @property
    def running(self) -> bool:
        """Whether a reload is under way."""
        return self._task is not None and not self._task.done()

    def begin(self, parts: EngineParts) -> None:
        """Start a reload, or remember that another one is to follow the one under way."""
        if self.running:
            self._again = True
            log.info("reload: one is under way, another follows it")
        else:
            self._task = asyncio.get_running_loop().create_task(self._run(parts), name="reload")

    async def close(self) -> None:
        """Give up what is under way, and what it holds; a device that hangs would never let go of it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=LET_GO_S)

    async def _run(self, parts: EngineParts) -> None:
        """Reload until no further one was asked for meanwhile."""
        while True:
            self.outcome = await self._reload(parts)
            self.ended_at = datetime.now(UTC)
            self.finished += 1
            self._telemetry.reloads.labels(self.outcome).inc()
            if not self._again:
                return
            self._again = False

    async def _reload(self, parts: EngineParts) -> Outcome:
        started = time.monotonic()
        old = parts.card["version"]
        log.info("reload: loading the checkpoint again; version %s serves meanwhile", old)
        try:
            changed = await self._exchange(parts)
        except (CheckpointError, EngineUnavailable, SelfTestFailed, Refused) as error:
            log.error("reload refused: %s; version %s serves on", " ".join(str(error).split()), old)
            return Outcome.REFUSED
        except EngineOutOfMemory:
            log.error("reload refused: no memory for a second engine beside the first; version %s serves on", old)
            return Outcome.REFUSED
        except Exception as error:
            log.exception("reload refused: %s; version %s serves on", type(error).__name__, old)
            return Outcome.REFUSED
        seconds = time.monotonic() - started
        if not changed:
            log.info("reload: the file still holds version %s, nothing to do (%.1f s)", old, seconds)
            return Outcome.UNCHANGED
        log.info("reload: version %s serves in place of %s (%.1f s)", parts.card["version"], old, seconds)
        return Outcome.SUCCEEDED

    async def _exchange(self, parts: EngineParts) -> bool:
        """Load, compare, swap, and release the engine that is not needed; return whether another one serves now."""
        needless = new = await in_thread(self._pool, self._load)
        old = parts.engine
        try:
            if new.card["sha256"] == old.card["sha256"]:
                return False
            for key in FIXED:
                if new.card[key] != old.card[key]:
                    raise Refused(f"{key} of the new checkpoint differs from what is served: restart to serve it")
            await parts.adopt(new)
            needless = old
            self._telemetry.describe_model(new.card)
            return True
        finally:
            await in_thread(self._pool, needless.close)
            await in_thread(self._pool, give_back_memory)
