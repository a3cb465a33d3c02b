"""The checkpoint file loaded again while the old engine serves, and the exchange of the two without a gap.

SIGHUP -> compare the file with what is served -> load and verify it, self-test, warm-up, in a thread beside the serving
one -> compare again -> swap between two batches -> release the old engine. Whatever goes wrong before the swap leaves
all as it was, but for what is lost to the whole process, such as a CUDA context.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from datetime import UTC, datetime
from enum import StrEnum

from app.engine import Engine, SelfTestFailed
from app.engine_errors import EngineBroken, EngineOutOfMemory, EngineUnavailable
from app.errors import EngineFailed
from app.memory import give_back_memory
from app.predictor import EnginePredictor
from app.telemetry import Telemetry
from app.threads import in_thread
from model.metadata import CheckpointError

log = logging.getLogger(__name__)

# Clients rely on them, and the images in the queue have that size already.
FIXED = ("classes", "input_size")

# How long the end of a service waits for an engine that it has loaded and does not need.
LET_GO_S = 5.0


class ReloadOutcome(StrEnum):
    """How a reload ended; also the metric's label."""

    SUCCEEDED = "succeeded"
    UNCHANGED = "unchanged"
    REFUSED = "refused"


class Refused(Exception):
    """The new checkpoint must not replace the old one; the message says why, in one line."""


class Reloader:
    """Runs one reload at a time and remembers how the last one ended.

    `load` returns a warm, tested engine; it runs in a thread of `pool`, and so does what frees memory. If it raises
    EngineBroken, no engine of this process works any more, and `on_broken(reason)` is called. `sha256_of_file` returns
    the SHA-256 (hex) of the file that would be loaded; it raises CheckpointError where `load` would.
    """

    def __init__(
        self,
        load: Callable[[], Engine],
        pool: Executor,
        telemetry: Telemetry,
        *,
        sha256_of_file: Callable[[], str],
        on_broken: Callable[[str], None],
    ) -> None:
        self._load = load
        self._pool = pool
        self._telemetry = telemetry
        self._sha256_of_file = sha256_of_file
        self._on_broken = on_broken
        self._task: asyncio.Task[None] | None = None
        self._begun = 0.0
        self._again = False
        self.finished = 0
        self.outcome: ReloadOutcome | None = None
        self.ended_at: datetime | None = None
        for outcome in ReloadOutcome:
            telemetry.reloads.labels(outcome)

    @property
    def running(self) -> bool:
        """Whether a reload is under way."""
        return self._task is not None and not self._task.done()

    def begin(self, predictor: EnginePredictor) -> None:
        """Start a reload, or remember that another one is to follow the one under way."""
        if self.running:
            self._again = True
            log.warning(
                "reload: one is under way, for %.1f s so far; another follows it", time.monotonic() - self._begun
            )
        else:
            self._task = asyncio.get_running_loop().create_task(self._run(predictor), name="reload")

    async def close(self) -> None:
        """Cancel the reload under way, and wait LET_GO_S at most for its engine: a device that hangs never frees it."""
        self._again = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=LET_GO_S)

    async def _run(self, predictor: EnginePredictor) -> None:
        """Reload, and again if that was asked for meanwhile."""
        while True:
            outcome = await self._reload(predictor)
            await in_thread(self._pool, give_back_memory)  # also what a refused engine held, once its error is gone
            if outcome is None:
                return
            self.outcome = outcome
            self.ended_at = datetime.now(UTC)
            self.finished += 1
            self._telemetry.reloads.labels(self.outcome).inc()
            if not self._again:
                return
            self._again = False

    async def _reload(self, predictor: EnginePredictor) -> ReloadOutcome | None:
        """Return how it ended; None if the end of the service came first, which is no verdict on the checkpoint."""
        self._begun = started = time.monotonic()
        old = predictor.card["version"]
        log.info("reload: loading the checkpoint again; version %s serves meanwhile", old)
        try:
            changed = await self._swap_engine(predictor)
        except (CheckpointError, EngineUnavailable, SelfTestFailed, Refused) as error:
            log.error("reload refused: %s; version %s serves on", " ".join(str(error).split()), old)
            return ReloadOutcome.REFUSED
        except EngineFailed:
            log.error("reload given up: version %s serves no longer, and no other one can take over", old)
            return None
        except EngineBroken as error:
            log.exception("reload failed, and version %s cannot serve on", old)
            self._on_broken(f"the engine broke in a reload: {error}")
            return ReloadOutcome.REFUSED
        except Exception as error:
            log.exception("reload refused: %s; version %s serves on", type(error).__name__, old)
            return ReloadOutcome.REFUSED
        seconds = time.monotonic() - started
        if not changed:
            log.info("reload: the file still holds version %s, nothing to do (%.1f s)", old, seconds)
            return ReloadOutcome.UNCHANGED
        log.info("reload: version %s serves in place of %s (%.1f s)", predictor.card["version"], old, seconds)
        return ReloadOutcome.SUCCEEDED

    async def _swap_engine(self, predictor: EnginePredictor) -> bool:
        """Load, compare, swap, and release the engine that is not needed; return whether another one serves now."""
        old = predictor.engine
        if await in_thread(self._pool, self._sha256_of_file) == old.card["sha256"]:
            return False  # the signal may have been for other files, such as keys: a second engine costs seconds
        try:
            needless = new = await in_thread(self._pool, self._load)
        except (EngineOutOfMemory, MemoryError) as error:
            raise Refused("no memory for a second engine beside the first") from error
        try:
            if new.card["sha256"] == old.card["sha256"]:
                return False
            for key in FIXED:
                if new.card[key] != old.card[key]:
                    raise Refused(f"{key} of the new checkpoint differs from what is served: restart to serve it")
            await predictor.swap_engine(new)
            needless = old
            self._telemetry.describe_model(new.card)
            return True
        finally:
            await self._release(needless)

    async def _release(self, engine: Engine) -> None:
        """Close an engine. Errors are logged, not raised."""
        try:
            await in_thread(self._pool, engine.close)
        except Exception:
            log.exception("the engine that serves no longer could not be closed")
