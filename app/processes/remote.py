"""What an HTTP process has in place of the batcher: images go to the engine process, outcomes come back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from app.batching.admission import Load, check_room
from app.batching.jobs import Images, Job, ModelIdentity, Ticket
from app.errors import EngineFailed
from app.processes.frames import AnswerCodec, Kind, Payload, pack_submission, pack_with_id, unpack_refusal
from app.processes.shared_state import LATE_S, SharedState
from app.settings import Settings


class RemoteBatcher:
    """The queue of another process, with the interface of app.batcher.Batcher that requests use (app.predictor.Queue).

    `send` takes packed frames; replies are to be given to `on_answer` and `on_refusal`. Jobs time out here, and
    one that ends before its answer, for whatever reason, is cancelled there.
    """

    def __init__(self, shared: SharedState, index: int, settings: Settings, send: Callable[[bytes], None]) -> None:
        self.model: ModelIdentity = {}
        self._shared = shared
        self._index = index
        self._max_queue_images = settings.max_queue_images
        self._max_queue_s = settings.max_queue_s
        self._send = send
        self._jobs: dict[int, Job] = {}
        self._number = 0
        self._answers = AnswerCodec()
        self._lost = False

    @property
    def load(self) -> Load:
        """What the engine has to do, for all processes."""
        return self._shared.load()

    @property
    def queued_images(self) -> int:
        """Images of all processes that are admitted and not yet in a batch."""
        return self.load.queued_images

    @property
    def alive(self) -> bool:
        """Whether there is an engine process."""
        return not self._lost

    def require_room(self, count: int, deadline: float) -> None:
        """Raise QueueFull or EngineFailed as far as can be known here; the engine process has the last word."""
        if self._lost:
            raise EngineFailed
        check_room(self.load, count, deadline, max_queue_images=self._max_queue_images, max_queue_s=self._max_queue_s)

    def admit(self, count: int, deadline: float) -> Ticket:
        """Reserve places for `count` images that are wanted by `deadline`. Raises what `require_room` raises."""
        self.require_room(count, deadline)
        self._shared.count_admitted(self._index, count)
        return Ticket(self._free_places, count)

    def _free_places(self, count: int) -> None:
        self._shared.count_admitted(self._index, -count)

    def submit(self, ticket: Ticket, images: Images, deadline: float) -> Job:
        """Send uint8 (N, 3, S, S), 1 <= N <= the ticket's places; `deadline` is a time.monotonic().

        The job raises QueueFull if the engine process has no room for them after all.
        """
        if self._lost:
            raise EngineFailed
        packed = pack_submission(self._number + 1, deadline, images)  # before anything changes: memory may be short
        ticket.give_back(ticket.places - len(images))
        ticket.hand_over()  # the engine process counts them from here on
        job = Job(images, ticket, deadline)
        self._number += 1
        self._jobs[self._number] = job
        job.when_ended(partial(self._ended, self._number))
        self._send(packed)
        return job

    def _ended(self, number: int, _job: Job) -> None:
        """Cancel images whose job has ended by itself: deadline, client gone, request cancelled."""
        if self._jobs.pop(number, None) is not None:
            self._send(pack_with_id(Kind.CANCEL, number))

    def on_answer(self, payload: Payload) -> None:
        """Take an ANSWER."""
        number, outcome = self._answers.unpack(payload)
        job = self._jobs.pop(number, None)
        if job is not None:
            job.succeed(outcome)

    def on_refusal(self, payload: Payload) -> None:
        """Take a REFUSAL."""
        number, error = unpack_refusal(payload)
        job = self._jobs.pop(number, None)
        if job is not None:
            job.fail(error)

    def lose(self) -> None:
        """There is no engine process any more: what waits fails with EngineFailed."""
        self._lost = True
        jobs, self._jobs = self._jobs, {}
        for job in jobs.values():
            job.fail(EngineFailed())

    def stalled_s(self) -> float:
        """Return for how many seconds the engine, or its process, has made no progress."""
        silent_s = self._shared.engine_silent_s
        return max(self._shared.engine_stalled_s, silent_s if silent_s > LATE_S else 0.0)

    async def close(self) -> None:
        """End it."""
        self.lose()
