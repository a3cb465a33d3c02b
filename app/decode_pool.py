"""The threads that decode pictures and take large bodies apart: fair between requests, and bounded in time.

A thread works for one request for a moment, or for one file of it if that takes longer, and then for the request that
has waited longest: whoever sends hundreds of pictures keeps nobody waiting for all of them. What would not be decoded
by its deadline is refused at once, by the rule that holds before the engine (app/batching/admission.py).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from app.batching.admission import DecodingLoad, check_time_to_decode
from app.errors import ClientGone, DeadlinePassed, NotReady, ServiceError
from app.threads import contain, settle

# A thread that has worked for one request for so long looks whether others wait. Tiny files take a thirtieth of it.
TURN_S = 0.002

# What a file takes while nothing is known: about that of a JPEG on one core (2 megapixels, 0.6 MB, 20 ms).
GUESSED_S_PER_BYTE = 3e-8
GUESS_COUNTS_AS_S = 0.02

# Of how many seconds of decoding the pace is the average, the latest counting most.
PACE_MEMORY_S = 2.0

Item = TypeVar("Item")
Result = TypeVar("Result")


def first_of(line: deque[Item]) -> Item | None:
    """Take the first one off a line that others take of as well; None if there is none."""
    try:
        return line.popleft()
    except IndexError:
        return None


class Work(Generic[Item, Result]):
    """A request's items, each to be given to `function` in a thread.

    `future` has the results, in the items' order. It raises DeadlinePassed at `deadline`, a time.monotonic(),
    ClientGone when abandoned, or what `function` raised; what is not begun by then never is, and is not held.
    `sizes` are the items' bytes, by which it is known how long they take: 0 for what is no file to be decoded.
    """

    def __init__(
        self, function: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int], deadline: float
    ) -> None:
        self.function = function
        self.deadline = deadline
        self.waiting = deque(zip(range(len(items)), items, sizes, strict=True))
        self.results: list[Any] = [None] * len(items)
        self.seconds: list[float] = []  # that each finished item took
        self.came = time.monotonic()
        self.begun: float | None = None
        self.loop = loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Result]] = loop.create_future()
        timer = loop.call_later(max(0.0, deadline - self.came), self.fail, DeadlinePassed())
        self.future.add_done_callback(lambda _future: timer.cancel())

    @property
    def busy_s(self) -> float:
        """How many seconds threads have been at it, all together."""
        return sum(self.seconds)

    @property
    def waited_s(self) -> float:
        """How many seconds it has waited for the first thread; until then 0."""
        return 0.0 if self.begun is None else self.begun - self.came

    def finish(self) -> None:
        """End it with its results."""
        if not self.future.done():
            self.future.set_result(self.results)

    def fail(self, error: Exception) -> None:
        """End it with an error, unless it has ended already."""
        if not self.future.done():
            self.future.set_exception(error)

    def abandon(self) -> None:
        """End it because its client has gone."""
        self.fail(ClientGone())


class Backlog:
    """What files wait or are being decoded, and how long files take, by their bytes.

    Threads only note what they do, and the event loop counts: a lock that they share is one more thing to wait for.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._waiting_files = 0
        self._bytes = 0
        self._pace = GUESS_COUNTS_AS_S, GUESS_COUNTS_AS_S / GUESSED_S_PER_BYTE  # seconds, and bytes in them
        self._begun: deque[int] = deque()
        self._ended: deque[tuple[int, float | None]] = deque()

    # -- on the event loop

    def add(self, sizes: Sequence[int]) -> None:
        """Count files that wait from now on, by their bytes."""
        self._take_notes()
        self._waiting_files += sum(size > 0 for size in sizes)
        self._bytes += sum(sizes)

    def load(self) -> DecodingLoad:
        """Return what the threads have to do."""
        self._take_notes()
        seconds, in_them = self._pace
        return DecodingLoad(self._waiting_files, self._bytes, seconds / in_them, self._threads)

    def _take_notes(self) -> None:
        """Count what the threads have noted."""
        while (size := first_of(self._begun)) is not None:
            self._waiting_files -= size > 0
        while (ended := first_of(self._ended)) is not None:
            self._count_ended(*ended)

    def _count_ended(self, size: int, seconds: float | None) -> None:
        self._bytes -= size
        if size and seconds is not None:
            seconds = min(seconds, PACE_MEMORY_S)
            kept = max(0.5, 1.0 - seconds / PACE_MEMORY_S)  # no single file makes the pace
            self._pace = self._pace[0] * kept + seconds, self._pace[1] * kept + size

    # -- anywhere

    def begin(self, size: int) -> None:
        """Note that a file of so many bytes waits no longer."""
        self._begun.append(size)

    def end(self, size: int, seconds: float | None) -> None:
        """Note that a file that has begun is done with; it took so long, or was not decoded (None)."""
        self._ended.append((size, seconds))


class DecodePool:
    """`threads` threads, started with the first work, and what waits for them.

    More than `max_queue_s` seconds of work do not wait, unless they are a file or two for each thread.
    """

    def __init__(self, threads: int, max_queue_s: float) -> None:
        self.threads = threads
        self._max_queue_s = max_queue_s
        self._backlog = Backlog(threads)
        # Requests with items that wait, each once, and those ahead of them. For each there is a call that is True; one
        # that is False ends a thread.
        self._turns: deque[Work[Any, Any]] = deque()
        self._ahead: deque[Work[Any, Any]] = deque()
        self._calls: SimpleQueue[bool] = SimpleQueue()
        self._begun: dict[int, float] = {}  # since when each busy thread has been at its item
        self._unfinished: set[Work[Any, Any]] = set()
        self._started = 0
        self._closed = False

    # -- on the event loop

    def require_room(self, size: int, deadline: float) -> None:
        """Raise QueueFull if files of so many bytes would not be decoded in time, DeadlinePassed after the deadline."""
        check_time_to_decode(self._backlog.load(), size, deadline, max_queue_s=self._max_queue_s)

    def submit(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        sizes: Sequence[int],
        deadline: float,
        *,
        ahead: bool = False,
    ) -> Work[Item, Result]:
        """Let the threads do what `Work` says; `ahead` of all others what is short and comes before their decoding.

        Raises NotReady when closed.
        """
        if self._closed:
            raise NotReady
        self._start_threads()
        work = Work(function, items, sizes, deadline)
        self._unfinished.add(work)
        work.future.add_done_callback(partial(self._drop_rest, work))
        self._backlog.add(sizes)
        self._queue(work, self._ahead if ahead else self._turns)
        return work

    def _start_threads(self) -> None:
        """Start the threads that are missing. Raises RuntimeError if not even one can be had."""
        while self._started < self.threads:
            try:
                threading.Thread(target=self._serve, name=f"decode_{self._started}", daemon=True).start()
            except RuntimeError:
                if not self._started:
                    raise
                return  # fewer do it as well, and the next work may find more
            self._started += 1

    def _drop_rest(self, work: Work[Any, Any], _future: asyncio.Future[Any]) -> None:
        """Let go of what a request that has ended still has waiting, and of itself: its error's stack has the body."""
        self._unfinished.discard(work)
        while (taken := self._take(work)) is not None:
            self._backlog.end(taken[2], None)
        for line in (self._ahead, self._turns):
            with suppress(ValueError):
                line.remove(work)

    def stalled_s(self) -> float:
        """Return for how many seconds every thread has been busy with one item, none coming to its end."""
        begun = list(self._begun.values())
        return time.monotonic() - max(begun) if begun and len(begun) == self._started else 0.0

    def close(self) -> None:
        """End the threads once they are done with their items; what is not finished is cancelled."""
        self._closed = True
        for work in list(self._unfinished):
            work.future.cancel()
        for _ in range(self.threads):
            self._calls.put(False)

    # -- on either

    def _queue(self, work: Work[Any, Any], line: deque[Work[Any, Any]]) -> None:
        line.append(work)
        self._calls.put(True)

    def _take(self, work: Work[Item, Result]) -> tuple[int, Item, int] | None:
        """Take the next item off a request, with its place and its bytes; None if none is left."""
        taken = first_of(work.waiting)
        if taken is not None:
            self._backlog.begin(taken[2])
        return taken

    # -- in the threads

    def _serve(self) -> None:
        while self._calls.get():
            self._take_turn()

    def _take_turn(self) -> None:
        """Work for the request that has waited longest, while other threads may take of it as well."""
        work = first_of(self._ahead) or first_of(self._turns)
        if work is None:  # which has ended meanwhile
            return
        if len(work.waiting) > 1:
            self._queue(work, self._turns)
        begun = time.monotonic()
        until = begun + TURN_S
        if work.begun is None:
            work.begun = begun
        while (taken := self._take(work)) is not None:
            begun = self._do(work, taken, begun)
            if begun >= until:
                break

    def _do(self, work: Work[Any, Any], taken: tuple[int, Any, int], begun: float) -> float:
        """Do an item of a request, begun at a time.monotonic(); return that of its end."""
        place, item, size = taken
        thread = threading.get_ident()
        self._begun[thread] = begun
        try:
            if begun >= work.deadline:  # the event loop is late to say so
                raise DeadlinePassed
            work.results[place] = contain(work.function, item)
        except Exception as error:
            del self._begun[thread]
            self._backlog.end(size, None if isinstance(error, DeadlinePassed) else time.monotonic() - begun)
            # The stack of a bug will be logged; that of any other error holds the item.
            settle(work.loop, work.fail, error.without_stack() if isinstance(error, ServiceError) else error)
            return time.monotonic()
        ended = time.monotonic()
        del self._begun[thread]
        self._backlog.end(size, ended - begun)
        work.seconds.append(ended - begun)
        if len(work.seconds) == len(work.results):  # two threads may both see the last one: it ends once
            settle(work.loop, work.finish)
        return ended
