"""What a process that answers requests has, whether the engine is in it or in another process."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Coroutine
from typing import Any

from app.errors import NotReady
from app.file_watch import FileWatch
from app.http.byte_budget import ByteBudget
from app.http.tls import Certificate
from app.keys import Keys
from app.lifecycle import Lifecycle, State
from app.predictor import Predictor
from app.schemas import Reloads
from app.settings import Settings
from app.telemetry import Telemetry

# A batch may take longer than a short deadline: that the engine is slow makes no service unready.
MIN_STALL_S = 5.0


class Service(ABC):
    """Settings, keys, certificate, telemetry and lifecycle from the start; the predictor once there is one.

    Of limits on bytes and connections each HTTP process has its share. Raises SettingsError if the file of keys or the
    certificate cannot be used.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.telemetry = Telemetry()
        files = (settings.api_keys_file, settings.tls_cert, settings.tls_key)
        self.file_watch = FileWatch(path for path in files if path is not None)
        self.keys = Keys(settings)
        self.certificate = (
            Certificate(settings.tls_cert, settings.tls_key) if settings.tls_cert and settings.tls_key else None
        )
        self.body_budget = ByteBudget(settings.buffered_bytes_per_process)
        self.lifecycle = Lifecycle()
        self._background: list[asyncio.Task[None]] = []
        self._predictor: Predictor | None = None
        self.files_refused: list[str] = []  # the last time that they were read again
        if (certificate := self.certificate) is not None:
            self.telemetry.watch_certificate(lambda: certificate.expires_at)
        self.telemetry.watch(self.queued_images, self.images_per_second, lambda: self.unready_reason() is None)

    @abstractmethod
    async def start(self) -> None:
        """Begin to get ready; the port opens meanwhile, and `/readyz` gives the reason for not being ready."""

    @abstractmethod
    async def stop(self) -> None:
        """End the predictor; to be called once HTTP is done, when nothing waits any more."""

    def run_in_background(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Run `work` in a task until the service stops; the service fails if it raises."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self.lifecycle.watch_over(task)
        self._background.append(task)

    async def _end_background(self) -> None:
        """Cancel what `run_in_background` has begun, and wait for its end."""
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)

    @property
    @abstractmethod
    def reloads(self) -> Reloads:
        """What has become of the reloads of the checkpoint."""

    async def metrics(self) -> bytes:
        """Return the service's metrics in Prometheus' text format. Raises NotReady where they cannot be had."""
        return self.telemetry.render()

    def read_files_again(self) -> None:
        """Read keys and certificate again; those that cannot be used stay as they are, and `files_refused` says so."""
        self.file_watch.remember()
        read: dict[str, bool] = {}
        if self.settings.api_keys_file is not None:
            read["keys"] = self.keys.reload()
        if self.certificate is not None:
            read["certificate"] = self.certificate.reload()
        for file, was_read in read.items():
            self.telemetry.file_reloads.labels(file, "read" if was_read else "refused").inc()
        self.files_refused = [file for file, was_read in read.items() if not was_read]

    @property
    def predictor(self) -> Predictor | None:
        """What predicts, if the engine has been loaded."""
        return self._predictor

    def require_predictor(self) -> Predictor:
        """Return what predicts. Raises NotReady while starting and after a failure."""
        if self._predictor is None or not self.lifecycle.serving:
            raise NotReady
        return self._predictor

    def refuse_if_full(self, count: int = 1) -> None:
        """Raise QueueFull while not even one image, or `count`, with the longest deadline, may join the queue.

        Raises EngineFailed if the engine is dead.
        """
        if self._predictor is not None and self.lifecycle.serving:
            self._predictor.batcher.require_room(count, time.monotonic() + self.settings.timeout_ms / 1000)

    def stalled(self) -> str | None:
        """Return what has had work and made no progress for longer than `stall_timeout_s`, or None."""
        return self._predictor.stalled(self.settings.stall_timeout_s) if self._predictor else None

    def unready_reason(self) -> str | None:
        """Return why a prediction would fail now, or None on positive evidence that it would succeed."""
        if self.lifecycle.state is not State.READY:
            return self.lifecycle.reason
        if self._predictor is None or not self._predictor.batcher.alive:
            return "the batcher is not running"
        return self._predictor.stalled(self.patience_s) or self.stalled()

    @property
    def patience_s(self) -> float:
        """After how many seconds without progress no prediction succeeds, long before a restart has to help.

        What waits longer than its deadline gets 504.
        """
        return max(self.settings.timeout_ms / 1000, MIN_STALL_S)

    def images_per_second(self) -> float:
        """Return what the engine is known to compute in full batches, 0 while nothing is known."""
        return self._predictor.batcher.load.images_per_s if self._predictor else 0.0

    def queued_images(self) -> float:
        """Return how many images wait or are being decoded."""
        return self._predictor.batcher.queued_images if self._predictor else 0
