"""The service of the engine process, when others speak HTTP: it has the engine, and speaks for all of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

from app.batching.admission import Load
from app.engine import load_engine
from app.engine_service import EngineFactory, EngineService
from app.lifecycle import State
from app.processes.frames import Kind
from app.processes.http_process_handle import HttpProcessHandle
from app.processes.process_metrics import merged_metrics, metrics_snapshot
from app.processes.shared_state import BEAT_S, SharedState
from app.schemas import Reloads
from app.settings import Settings

# One of two: an HTTP process that asks for all numbers waits twice as long (SCRAPE_TIMEOUT_S).
SNAPSHOT_TIMEOUT_S = 2.0


class EngineProcessService(EngineService):
    """Ready once the engine is and every HTTP process serves; `http_processes` are these.

    Raises SettingsError if a file that the settings name cannot be used.
    """

    def __init__(self, settings: Settings, engine_factory: EngineFactory = load_engine) -> None:
        self.shared = SharedState.create(settings.http_processes)
        self.http_processes = [
            HttpProcessHandle(self, self.shared, index, on_turn=self._publish, on_lost=self._on_lost)
            for index in range(settings.http_processes)
        ]
        super().__init__(settings, engine_factory)
        self.closing = False
        self._sent_status = b""
        self._collecting: asyncio.Task[bytes] | None = None

    async def start(self) -> None:
        """Begin to load the engine, and to send the HTTP processes its status."""
        self.run_in_background(self._tick(), "tick")
        await super().start()

    async def _load(self) -> None:
        """Load the engine once every HTTP process serves: beside their start the best batch would be measured wrong."""
        for process in self.http_processes:
            await process.serving.wait()
        await super()._load()
        self._send_status()

    async def close_http_processes(self, timeout_s: float, *, after_failure_s: float) -> list[int | None]:
        """Let every HTTP process close the port, finish what it accepted, and end; return their exit codes.

        One that takes longer is killed, and has none. After a failure what waits is answered with 503. The times are
        those of `time_limit`.
        """
        self.closing = True
        if self.lifecycle.state is State.FAILED and self._predictor is not None:
            await self._predictor.close()
        self._send_status()
        for process in self.http_processes:
            process.close()
        return await asyncio.gather(*(process.ended(timeout_s, after_failure_s) for process in self.http_processes))

    def _on_lost(self, process: HttpProcessHandle) -> None:
        self.shared.forget(process.index)  # in a drain, too: others go on serving
        if not self.closing:
            self.lifecycle.fail(f"{process.name} has ended by itself", "an HTTP process has ended")

    # -- what the others are sent

    async def _tick(self) -> None:
        while True:
            self._publish()
            self._send_status()
            for process in self.http_processes:
                process.log_stall(self.settings.stall_timeout_s)
            await asyncio.sleep(BEAT_S)

    def _publish(self) -> None:
        """Write what the engine has to do into the shared memory."""
        if self._predictor is None:
            self.shared.publish(Load(0, 0, 0.0, 0), 0.0)
        else:
            self.shared.publish(self._predictor.batcher.load, self._predictor.batcher.stalled_s())

    def _send_status(self) -> None:
        """Send every HTTP process the status, if it has changed; each BEAT_S, that their probes do not lag behind."""
        status = {
            "state": self.lifecycle.state,
            "reason": self.lifecycle.reason,
            "started": self.lifecycle.started,
            "stalled": self.stalled(),
            "unready": self.unready_reason(),
            "card": self._predictor.card if self._predictor else None,
            "reloads": self.reloads.model_dump(mode="json"),
        }
        packed = json.dumps(status).encode()
        if packed != self._sent_status:
            self._sent_status = packed
            for process in self.http_processes:
                process.link.send(Kind.STATUS, packed)
                process.link.flush()

    def read_files_again(self) -> None:
        """Let the HTTP processes read keys and certificate again; here it is for /health on the port for probes."""
        super().read_files_again()
        for process in self.http_processes:
            process.link.send(Kind.READ_AGAIN)

    @property
    def reloads(self) -> Reloads:
        """What has become of the reloads of the checkpoint, and of the files that every process reads."""
        refused = {*self.files_refused, *(file for process in self.http_processes for file in process.files_refused)}
        return super().reloads.model_copy(update={"files_refused": sorted(refused)})

    # -- what probes and metrics see

    def stalled(self) -> str | None:
        """Return what has made no progress for longer than `stall_timeout_s`, in any process, or None."""
        return super().stalled() or next(self._stalled_http_processes(self.settings.stall_timeout_s), None)

    def unready_reason(self) -> str | None:
        """Return why a prediction would fail now, or None.

        A process that hangs gets no new connections, so that before `stall_timeout_s` it counts only if all do.
        """
        hanging = list(self._stalled_http_processes(self.patience_s))
        return super().unready_reason() or (hanging[0] if len(hanging) == len(self.http_processes) else None)

    def _stalled_http_processes(self, limit_s: float) -> Iterator[str]:
        """Yield what makes no progress, for each HTTP process in which something has made none for longer."""
        for process in self.http_processes:
            hanging = process.stalled(limit_s)
            if hanging is not None:
                yield hanging

    def queued_images(self) -> float:
        """Return how many images wait or are being decoded, in all processes."""
        return super().queued_images() + self.shared.in_flight_images()

    async def metrics(self) -> bytes:
        """Return the metrics of all processes; of one that does not answer, or has ended, the last ones.

        Requests while they are being collected share them: each collection takes time of every process.
        """
        if self._collecting is None or self._collecting.done():
            self._collecting = asyncio.get_running_loop().create_task(self._collect_metrics(), name="metrics")
        return await asyncio.shield(self._collecting)

    async def _collect_metrics(self) -> bytes:
        counts = [
            process.request_snapshot()
            for process in self.http_processes
            if process.serving.is_set() and not process.link.lost.is_set()
        ]
        if counts:
            await asyncio.wait(counts, timeout=SNAPSHOT_TIMEOUT_S)
        known = [process.snapshot for process in self.http_processes if process.snapshot is not None]
        return merged_metrics(metrics_snapshot(self.telemetry.registry), known)
