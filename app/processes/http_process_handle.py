"""One HTTP process, as the engine process sees it: how it starts and ends, and what passes between the two.

Its images go to the batcher, outcomes go back.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from app.batching.jobs import Job
from app.errors import ServiceError
from app.processes.acceptor import Channel
from app.processes.frames import AnswerCodec, Kind, Payload, pack_refusal, unpack_submission, unpack_with_id
from app.processes.http_process import IGNORED
from app.processes.link import Link
from app.processes.shared_state import LATE_S, SharedState
from app.settings import Settings

if TYPE_CHECKING:
    from app.processes.engine_process import EngineProcessService

log = logging.getLogger(__name__)

# What a process takes to be gone once its link is, amply.
LAST_S = 5.0

# What hangs for no longer is not worth a line.
STALLED_BEATS = 5


class HttpProcessHandle:
    """The HTTP process `index`, once it has been started, the link to it, and what connections reach it through.

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
        self.channel: Channel | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.serving = asyncio.Event()
        self._closed = False
        self.ended_by_itself = False
        self._beats_stalled = 0
        self.snapshot: bytes | None = None
        self.files_refused: list[str] = []
        self._pending_snapshots: deque[asyncio.Future[None]] = deque()
        self._jobs: dict[int, Job] = {}
        self._answers = AnswerCodec()
        self._scrapes: set[asyncio.Task[None]] = set()

    # -- its life

    async def start(self, settings: Settings) -> Channel:
        """Start the process, and return what connections are handed to it through."""
        link, its_link = socket.socketpair()
        channel, its_channel = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with its_link, its_channel:
            files = (its_link.fileno(), its_channel.fileno(), self._shared.file)
            self._process = start_process(settings, self.index, files)
        self.channel = Channel(channel, self._shared, self.index)
        await self.link.open(link)
        return self.channel

    @property
    def name(self) -> str:
        """What the log calls it."""
        return f"HTTP process {self.index} (pid {self._process.pid if self._process else None})"

    def close(self) -> None:
        """Hand it no more connections, and let it finish what it has and end."""
        self._closed = True
        if self.channel is not None:
            self.channel.close()
        self.link.send(Kind.CLOSE)

    async def ended(self, timeout_s: float, after_failure_s: float) -> int | None:
        """Wait for its end after `close`, and return its exit code. One that takes longer is killed: None."""
        try:
            async with self._service.lifecycle.time_limit(timeout_s, after_failure_s=after_failure_s):
                await self.link.lost.wait()
            return await asyncio.to_thread(self._wait, LAST_S)
        except (TimeoutError, subprocess.TimeoutExpired):
            await asyncio.to_thread(self.kill)
            return None

    def _wait(self, timeout_s: float | None = None) -> int:
        return self._process.wait(timeout_s) if self._process is not None else 0

    def dump_stacks(self) -> None:
        """Let the process write its stacks on standard error."""
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End the process now, unless it has ended."""
        if self._process is not None:
            self._process.kill()
            self._wait()

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
        job.when_ended(partial(self._done, submission_id))

    def _on_cancel(self, payload: Payload) -> None:
        job = self._jobs.pop(unpack_with_id(payload)[0], None)
        if job is not None:
            job.abandon()

    def _done(self, submission_id: int, job: Job) -> None:
        """Send a job's answer or error, unless it was cancelled."""
        if self._jobs.pop(submission_id, None) is None:
            return
        if job.outcome is not None:
            self.link.send_frame(self._answers.pack(submission_id, job.outcome))
        else:
            assert job.error is not None
            self.link.send_frame(pack_refusal(submission_id, job.error))

    def _lose(self) -> None:
        self.ended_by_itself = not self._closed
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

    def log_stall(self, limit_s: float) -> None:
        """Log once when it has made no progress for longer than `limit_s`; to be called with each beat.

        After all processes were stopped for a while (docker pause, Ctrl-Z), that seems to be so for a beat or two.
        """
        hanging = self.stalled(limit_s)
        self._beats_stalled = self._beats_stalled + 1 if hanging else 0
        if self._beats_stalled == STALLED_BEATS:
            log.error("%s: %s", self.name, hanging)

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


def start_process(settings: Settings, index: int, files: tuple[int, int, int]) -> subprocess.Popen[bytes]:
    """Start an HTTP process. It inherits the files, and gets the settings where no list of processes shows the key."""
    known = settings.model_dump(mode="json")
    if settings.api_key is not None:
        known["api_key"] = settings.api_key.get_secret_value()
    # Not from whatever folder this process happens to be in, as -m would by itself.
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    command = [sys.executable, "-P", "-m", "app.processes.http_process", str(index), *map(str, files)]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)  # inherited, until it ignores them
    try:
        process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, pass_fds=files, env={**os.environ, "PYTHONPATH": path}
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # it has ended; its socket shows that
        pipe.write(json.dumps(known).encode())
    return process
