"""Whether more images may join the queue: one rule, for the batcher and for HTTP processes that stand in front of it.

The queue is bounded by images and by time. What waits is compared with the rate of the last full batches, so that what
is accepted keeps its deadline on a slow device as on a fast one. What waits to be decoded is compared with how long
files have taken of late, by their bytes: pixels are known only once a header is read.
"""

from __future__ import annotations

import math
import time
from typing import NamedTuple

from app.errors import DeadlinePassed, QueueFull

# The share of a request's time that the queue may be expected to take; the rest is for what was not foreseen.
QUEUE_SHARE = 0.8


def seconds_for(images: int, images_per_s: float) -> float:
    """Return how long so many images take at a rate; 0 where that is not known, and 0."""
    return images / images_per_s if images_per_s else 0.0


class Load(NamedTuple):
    """What an engine has to do: images that wait (those being decoded included), images of the batch it is at.

    `images_per_s` is what it does in full batches, 0 while nothing is known; `max_batch` what a full one holds.
    """

    queued_images: int
    running_images: int
    images_per_s: float
    max_batch: int

    @property
    def batch_s(self) -> float:
        """How long a full batch takes; 0 while nothing is known."""
        return seconds_for(self.max_batch, self.images_per_s)

    def seconds_until_done(self, count: int) -> float:
        """Return how long the engine will need for all it has and `count` images more; 0 while nothing is known."""
        return seconds_for(self.running_images + self.queued_images + count, self.images_per_s)


def check_room(load: Load, count: int, deadline: float, *, max_queue_images: int, max_queue_s: float) -> None:
    """Raise QueueFull, saying when to come back, if there is no room or no time for `count` images.

    They are wanted by `deadline`, a time.monotonic(), and have to be done by then, unless nothing waits. What is ahead
    of them must not take longer than `max_queue_s`, unless less than two batches wait: the engine is to have work.
    Raises DeadlinePassed after the deadline.
    """
    left_s = _left_s(deadline)
    if not load.queued_images and count <= max_queue_images:
        return
    ahead_s = load.seconds_until_done(0)
    in_time = load.seconds_until_done(count) <= QUEUE_SHARE * left_s
    too_long = ahead_s > max_queue_s and load.queued_images >= 2 * load.max_batch
    no_room = load.queued_images + count > max_queue_images
    if no_room or too_long or not in_time:
        raise QueueFull(retry_after_s=_retry_after_s(ahead_s), batch_s=load.batch_s)


class DecodingLoad(NamedTuple):
    """What the decoding threads of a process have to do: files that wait, bytes of these and of those begun."""

    waiting_files: int
    unfinished_bytes: int
    seconds_per_byte: float
    threads: int

    def seconds_until_done(self, size: int) -> float:
        """Return how long the threads will need for all they have and files of `size` bytes more."""
        return (self.unfinished_bytes + size) * self.seconds_per_byte / self.threads


def check_time_to_decode(load: DecodingLoad, size: int, deadline: float, *, max_queue_s: float) -> None:
    """Raise QueueFull, saying when to come back, if files of `size` bytes would not be decoded in time.

    They have to be by `deadline`, a time.monotonic(), unless nothing waits. What is ahead of them must not take longer
    than `max_queue_s`, unless less than two files a thread wait: the threads are to have work.
    Raises DeadlinePassed after the deadline.
    """
    left_s = _left_s(deadline)
    ahead_s = load.seconds_until_done(0)
    in_time = load.seconds_until_done(size) <= QUEUE_SHARE * left_s
    too_long = ahead_s > max_queue_s and load.waiting_files >= 2 * load.threads
    if too_long or (load.waiting_files and not in_time):
        raise QueueFull(retry_after_s=_retry_after_s(ahead_s))


def _left_s(deadline: float) -> float:
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise DeadlinePassed
    return left_s


def _retry_after_s(ahead_s: float) -> int:
    return min(60, max(1, math.ceil(ahead_s)))
