"""One HTTP process, as the engine process sees it: its images go to the batcher, outcomes go back."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from app.batching.jobs import Job, Outcome
from app.errors import EngineFailed, ServiceError
from app.processes.frames import AnswerCodec, Kind, Payload, pack_refusal, unpack_submission, unpack_with_id
from app.processes.link import Link
from app.processes.shared_state import LATE_S, SharedState

if TYPE_CHECKING:
    from app.processes.engine_process import EngineProcessService


class HttpProcessHandle:
    """The engine process' end of the link to the HTTP process `index`.

    `on_turn` is called when the engine may have got or done some work, `on_lost` when the process has ended.
    """

    def __init__(
        self,
        service: EngineProcessService,
        shared: SharedState,
        index: int,
        *,
        on_turn: Callable[[], None],
        on_lost: Callable[[HttpProcessHandle], None],
    ) -> None:
        self._service = service
        self._shared = shared
        self.index = index
        self._on_lost = on_lost
        self.link = Link(
            {
                Kind.SUBMIT: self._on_submit,
                Kind.CANCEL: self._on_cancel,
                Kind.SERVING: lambda _payload: self.serving.set(),
                Kind.SNAPSHOT: self._on_snapshot,
                Kind.SCRAPE: self._on_scrape,
                Kind.FILES_REFUSED: self._on_files_refused,
            },
            self._lose,
            on_turn,
        )
        self.serving = asyncio.Event()
        self.snapshot: bytes | None = None
        self.files_refused: list[str] = []
        self._pending_snapshots: deque[asyncio.Future[None]] = deque()
        self._jobs: dict[int, Job] = {}
        self._answers = AnswerCodec()
        self._scrapes: set[asyncio.Task[None]] = set()

    # -- images

    def _on_submit(self, payload: Payload) -> None:
        submission_id, deadline, images = unpack_submission(payload)
        self._shared.count_received(self.index, len(images))
        try:
            batcher = self._service.require_predictor().batcher
            job = batcher.submit(batcher.admit(len(images), deadline), images, deadline)
        except ServiceError as error:
            self.link.send_frame(pack_refusal(submission_id, error))
            return
        self._jobs[submission_id] = job
        job.future.add_done_callback(partial(self._done, submission_id))

    def _on_cancel(self, payload: Payload) -> None:
        job = self._jobs.pop(unpack_with_id(payload)[0], None)
        if job is not None:
            job.abandon()

    def _done(self, submission_id: int, future: asyncio.Future[Outcome]) -> None:
        """Send what became of a job, unless nobody waits for it."""
        error = EngineFailed() if future.cancelled() else future.exception()
        job = self._jobs.pop(submission_id, None)
        if job is None:
            return
        if error is None:
            self.link.send_frame(self._answers.pack(submission_id, future.result()))
        else:
            self.link.send_frame(
                pack_refusal(submission_id, error if isinstance(error, ServiceError) else ServiceError())
            )

    def _lose(self) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.abandon()
        while self._pending_snapshots:
            self._pending_snapshots.popleft().cancel()
        self._on_lost(self)

    def stalled(self, limit_s: float) -> str | None:
        """Return what has made no progress there for longer than that, or None; None unless it serves, too."""
        if self.serving.is_set() and not self.link.lost.is_set():
            if self._shared.decoder_stalled_s(self.index) > limit_s:
                return "the decoder makes no progress"
            if self._shared.silent_s(self.index) > max(limit_s, LATE_S):
                return "an HTTP process makes no progress"
        return None

    # -- metrics

    def request_snapshot(self) -> asyncio.Future[None]:
        """Ask for the process' metrics; done once they are here, cancelled if the process ends before."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending_snapshots.append(future)
        self.link.send(Kind.COLLECT)
        return future

    def _on_snapshot(self, payload: Payload) -> None:
        self.snapshot = payload
        if self._pending_snapshots:
            future = self._pending_snapshots.popleft()
            if not future.done():
                future.set_result(None)

    def _on_files_refused(self, payload: Payload) -> None:
        self.files_refused = json.loads(payload)

    def _on_scrape(self, payload: Payload) -> None:
        task = asyncio.get_running_loop().create_task(self._answer_scrape(payload), name="scrape")
        self._scrapes.add(task)
        task.add_done_callback(self._scrapes.discard)

    async def _answer_scrape(self, scrape_id: Payload) -> None:
        self.link.send(Kind.METRICS, scrape_id + await self._service.metrics())
