"""Who waits for a batch: first come, first served, and nobody who has given up."""

import math
import time
from types import SimpleNamespace

import numpy as np
import pytest

from app.batching import job_queue
from app.batching.job_queue import TIDY_FROM, JobQueue
from app.batching.jobs import Job, Ticket
from app.errors import ClientGone, DeadlinePassed

pytestmark = pytest.mark.anyio


def job(count, first=0, deadline=math.inf):
    images = np.arange(first, first + count, dtype=np.uint8).repeat(3).reshape(count, 3, 1, 1)
    return Job(images, Ticket(lambda _count: None, count), deadline)


def queue_of(*jobs):
    queue = JobQueue()
    for one in jobs:
        queue.append(one)
    return queue


def numbers(slices):
    return [[int(image[0, 0, 0]) for image in images] for _job, images in slices]


async def test_images_come_off_in_the_order_in_which_they_came():
    queue = queue_of(job(3), job(1, first=3), job(2, first=4))
    assert queue.images == 6
    assert numbers(queue.take(2)) == [[0, 1]]
    assert queue.head_is_begun
    assert numbers(queue.take(3)) == [[2], [3], [4]]
    assert queue.images == 1
    assert numbers(queue.take(9)) == [[5]]
    assert not queue
    assert not queue.head_is_begun
    assert queue.images == 0


async def test_who_has_given_up_or_is_too_late_takes_no_room_and_gives_back_places():
    freed = []
    late = Job(np.zeros((4, 3, 1, 1), np.uint8), Ticket(freed.append, 4), time.monotonic() - 1)
    gone, there = job(2), job(2, first=7)
    queue = queue_of(late, gone, there)
    gone.abandon()
    assert numbers(queue.take(2)) == [[7, 8]]
    assert freed == [4]
    assert queue.images == 0
    for ended, error in ((late, DeadlinePassed), (gone, ClientGone)):
        with pytest.raises(error):
            ended.future.result()


async def test_who_is_due_now_is_too_late(monkeypatch):
    now = time.monotonic() + 3600  # later than it is: neither job's own timer may end it meanwhile
    monkeypatch.setattr(job_queue, "time", SimpleNamespace(monotonic=lambda: now))
    late, in_time = job(1, deadline=now), job(1, first=1, deadline=now + 0.1)
    assert numbers(queue_of(late, in_time).take(2)) == [[1]]
    with pytest.raises(DeadlinePassed):
        await late.future


async def test_the_head_alone_is_gone_on_with_once_it_is_begun():
    queue = queue_of(job(3), job(1, first=3))
    assert queue.take(4, head_only=True) == []
    assert numbers(queue.take(1)) == [[0]]
    assert numbers(queue.take(4, head_only=True)) == [[1, 2]]
    assert queue.images == 1


async def test_a_cleared_queue_has_nothing():
    queue = queue_of(job(3))
    queue.clear()
    assert not queue
    assert queue.images == 0
    assert queue.take(3) == []


@pytest.mark.parametrize("alive", [0, 2 * TIDY_FROM])
async def test_while_nothing_is_taken_off_who_has_given_up_does_not_pile_up(alive):
    queue = queue_of(*(job(2) for _ in range(alive)))
    for _ in range(100 * TIDY_FROM):
        gone = job(1)
        queue.append(gone)
        gone.abandon()
        assert isinstance(gone.future.exception(), ClientGone)
    assert len(list(queue)) <= 2 * alive + TIDY_FROM
    assert sum(len(images) for _, images in queue.take(10_000)) == 2 * alive
    assert queue.images == 0


async def test_a_begun_request_that_stays_when_others_are_dropped_is_gone_on_with():
    queue = queue_of(job(3))
    assert numbers(queue.take(1)) == [[0]]
    for _ in range(TIDY_FROM):
        gone = job(1)
        queue.append(gone)
        gone.abandon()
    assert (queue.head_is_begun, queue.images) == (True, 3)
    assert numbers(queue.take(4)) == [[1, 2]]
