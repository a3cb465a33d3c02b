"""One HTTP process, as the engine process sees it: its images go to the batcher, outcomes go back."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from app.batching.jobs import Job, Outcome
from app.errors import EngineFailed, ServiceError
from app.processes.block import Block
from app.processes.frames import Answers, Kind, Payload, pack_refusal, unpack_number, unpack_submission
from app.processes.link import Link

if TYPE_CHECKING:
    from app.processes.host import HostService


class Front:
    """The engine process' end of the link to the HTTP process `index`.

    `on_turn` is called when the engine may have got or done some work, `on_lost` when the process has ended.
    """

    def __init__(
        self,
        service: HostService,
        block: Block,
        index: int,
        *,
        on_turn: Callable[[], None],
        on_lost: Callable[[Front], None],
    ) -> None:
        self._service = service
        self._block = block
        self.index = index
        self._on_lost = on_lost
        self.link = Link(
            {
                Kind.SUBMIT: self._on_submit,
                Kind.CANCEL: self._on_cancel,
                Kind.SERVING: lambda _payload: self.serving.set(),
                Kind.NUMBERS: self._on_numbers,
                Kind.SCRAPE: self._on_scrape,
            },
            self._lose,
            on_turn,
        )
        self.serving = asyncio.Event()
        self.numbers: bytes | None = None
        self._counts: deque[asyncio.Future[None]] = deque()
        self._jobs: dict[int, Job] = {}
        self._answers = Answers()
        self._scrapes: set[asyncio.Task[None]] = set()

    # -- images

    def _on_submit(self, payload: Payload) -> None:
        number, deadline, images = unpack_submission(payload)
        self._block.receive(self.index, len(images))
        try:
            batcher = self._service.require_parts().batcher
            job = batcher.submit(batcher.admit(len(images), deadline), images, deadline)
        except ServiceError as error:
            self.link.send_frame(pack_refusal(number, error))
            return
        self._jobs[number] = job
        job.future.add_done_callback(partial(self._done, number))

    def _on_cancel(self, payload: Payload) -> None:
        job = self._jobs.pop(unpack_number(payload)[0], None)
        if job is not None:
            job.abandon()
            job.let_go()

    def _done(self, number: int, future: asyncio.Future[Outcome]) -> None:
        """Send what became of a job, unless nobody waits for it."""
        error = EngineFailed() if future.cancelled() else future.exception()
        job = self._jobs.pop(number, None)
        if job is None:
            return
        job.let_go()
        if error is None:
            self.link.send_frame(self._answers.pack(number, future.result()))
        else:
            self.link.send_frame(pack_refusal(number, error if isinstance(error, ServiceError) else ServiceError()))

    def _lose(self) -> None:
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.abandon()
            job.let_go()
        while self._counts:
            self._counts.popleft().cancel()
        self._on_lost(self)

    # -- metrics

    def count(self) -> asyncio.Future[None]:
        """Ask for the process' numbers; done once they are here, cancelled if the process ends before."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._counts.append(future)
        self.link.send(Kind.COUNT)
        return future

    def _on_numbers(self, payload: Payload) -> None:
        self.numbers = payload
        if self._counts:
            future = self._counts.popleft()
            if not future.done():
                future.set_result(None)

    def _on_scrape(self, payload: Payload) -> None:
        task = asyncio.get_running_loop().create_task(self._answer_scrape(payload), name="scrape")
        self._scrapes.add(task)
        task.add_done_callback(self._scrapes.discard)

    async def _answer_scrape(self, number: Payload) -> None:
        self.link.send(Kind.METRICS, number + await self._service.metrics())
