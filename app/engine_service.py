"""The service of a process that has the engine: how its predictor starts, reloads and stops."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from app.batcher import Batcher
from app.engine import Engine, SelfTestFailed, load_engine
from app.engine_errors import EngineUnavailable, RuntimeUnfit
from app.imaging import Decoder
from app.lifecycle import State
from app.memory import clear_error_frames, give_back_memory
from app.outages import OutageLog
from app.predictor import EnginePredictor, identity_of
from app.reload import Reloader
from app.schemas import Reloads
from app.service import Service
from app.settings import Settings
from app.stacks import dump_stacks
from app.threads import in_thread, lower_priority
from app.watchers import end_what_hangs, give_back_when_idle, read_changed_files, warn_of_expiry
from model.checkpoint import sha256_of
from model.metadata import CheckpointError

log = logging.getLogger(__name__)

EngineFactory = Callable[[Settings], Engine]


class EngineService(Service):
    """Engine, batcher and decoder in this process, once `engine_factory` has loaded the engine.

    `dump_stacks`, which may be set, is called before what hangs ends the service.

    Raises SettingsError if the file of keys or the certificate cannot be used.
    """

    def __init__(self, settings: Settings, engine_factory: EngineFactory = load_engine) -> None:
        super().__init__(settings)
        self._engine_factory = engine_factory
        # Not the event loop's own threads: an exit waits for those, and a device can hang while an engine is loaded.
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="load", initializer=lower_priority)
        self.reloader = Reloader(
            self._load_engine,
            self._loader,
            self.telemetry,
            sha256_of_file=lambda: sha256_of(settings.weights, settings.weights_sha256),
            on_broken=self._engine_failed,
        )
        self._predictor: EnginePredictor | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reload_follows = False
        self.dump_stacks = dump_stacks
        self._outages = OutageLog(self.lifecycle, self.telemetry, self.unready_reason)

    async def start(self) -> None:
        """Begin to load the engine; the port opens meanwhile, and `/readyz` gives the reason for not being ready."""
        self._loading = asyncio.get_running_loop().create_task(self._load(), name="load-engine")
        self._outages.start()
        if self.certificate is not None:
            self.run_in_background(warn_of_expiry(self.certificate), "watch-expiry")
        self.run_in_background(give_back_when_idle(self), "watch-memory")
        if self.settings.stall_exit_s:
            self.run_in_background(end_what_hangs(self), "watch")
        if self.settings.watch_files_s and self.file_watch.paths:
            self.run_in_background(read_changed_files(self), "watch-files")

    async def _load(self) -> None:
        started = time.monotonic()
        try:
            engine = await in_thread(self._loader, self._load_engine)
            await self.give_back_memory()
            self._predictor = self._predictor_of(engine)
            self._predictor.batcher.start()
            log.info(
                "loaded %s version %s on %s in %s by %s (%.1f s)",
                *(engine.card[key] for key in ("name", "version", "device", "dtype", "runtime")),
                time.monotonic() - started,
            )
        except (CheckpointError, EngineUnavailable, SelfTestFailed) as error:
            self.lifecycle.fail(f"cannot serve: {error}", "the checkpoint cannot be served; the log says why")
        except Exception as error:
            log.exception("the engine could not be started")
            self.lifecycle.fail(f"cannot serve: {type(error).__name__}", "the engine could not be started")
        else:
            self.lifecycle.mark_ready()
            if self._reload_follows:
                self._begin_reload()

    def last_progress(self) -> float:
        """Return when a batch was last formed or ended, as a time.monotonic(), 0.0 before there was any."""
        return self._predictor.batcher.last_progress if self._predictor is not None else 0.0

    async def give_back_memory(self) -> None:
        """Return freed memory to the system; behind a reload that is under way."""
        await in_thread(self._loader, give_back_memory)

    def _predictor_of(self, engine: Engine) -> EnginePredictor:
        """Surround an engine with what feeds it."""
        batcher = Batcher(
            engine.run,
            identity_of(engine.card),
            max_batch=engine.batch_sizes[-1],
            max_queue_images=self.settings.max_queue_images,
            max_queue_s=self.settings.max_queue_s,
            max_wait_s=self.settings.max_wait_ms / 1000,
            guessed_images_per_s=engine.images_per_s,
            overlaps=engine.overlaps,
            on_batch=self.telemetry.record_batch,
            on_fatal=self._engine_failed,
        )
        predictor = EnginePredictor(engine, batcher, Decoder.of(engine.card, self.settings))
        self.telemetry.describe_model(engine.card)
        return predictor

    def _engine_failed(self, reason: str) -> None:
        self.lifecycle.fail(reason, "the engine failed")

    def _load_engine(self) -> Engine:
        """Load the checkpoint file. What was measured once stays: beside a serving engine it comes out wrong."""
        if self._predictor is None:
            return self._engine_factory(self.settings)
        tuning = self._predictor.engine.tuning
        try:
            return self._engine_factory(self.settings.model_copy(update=tuning))
        except RuntimeUnfit as error:
            if self.settings.runtime != "auto":
                raise
            # What was chosen for its speed may not do for another checkpoint, for which a start would choose again.
            log.warning("%s: choosing again", error)
            clear_error_frames(error)
        # Here, where nothing holds any more what the failed one has built.
        chosen = {name: value for name, value in tuning.items() if name != "runtime"}
        return self._engine_factory(self.settings.model_copy(update=chosen))

    def read_files_again(self) -> None:
        """Read keys and certificate again, and warn, for all processes, if the certificate is about to end."""
        super().read_files_again()
        if self.certificate is not None:
            self.certificate.warn_of_expiry()

    def reload(self) -> None:
        """Read keys, certificate and checkpoint again; the last takes over without a gap, once the service is ready."""
        self.read_files_again()
        if self.lifecycle.state is State.STARTING:  # perhaps with what the file held before
            self._reload_follows = True
            log.info("reload: it follows once the service is ready")
        else:
            self._begin_reload()

    def _begin_reload(self) -> None:
        if self._predictor is not None and self.lifecycle.state is State.READY:
            self.reloader.begin(self._predictor)
        else:
            log.warning("reload ignored: %s", self.lifecycle.reason)

    @property
    def reloads(self) -> Reloads:
        """What has become of the reloads of the checkpoint."""
        reloads = Reloads.model_validate(self.reloader, from_attributes=True)
        return reloads.model_copy(update={"files_refused": self.files_refused})

    def unready_reason(self) -> str | None:
        """Return why a prediction would fail now, or None."""
        reason = super().unready_reason()
        if reason is None and self._predictor is not None and self._predictor.batcher.failures.failing:
            return "the engine fails"
        return reason

    async def stop(self) -> None:
        """End the predictor; to be called once HTTP is done, when nothing waits any more."""
        await self.reloader.close()
        if self._loading is not None:
            self._loading.cancel()
            await asyncio.wait({self._loading})
        await self._end_background()
        if self._predictor is not None:
            await self._predictor.close()
        await self._outages.stop()  # last, to report the requests that were refused just now
        self._loader.shutdown(wait=False)
        self.lifecycle.stop()
