"""When a refused client is told to come back."""

import time

import pytest

from app.batching.admission import Load, check_room
from app.errors import QueueFull


@pytest.mark.parametrize(("queued", "told_s"), [(1, 1), (10, 1), (95, 10), (10_000, 60)])
def test_who_is_refused_comes_back_when_the_queue_is_done_within_a_minute(queued, told_s):
    load = Load(queued, running_images=0, images_per_s=10.0, max_batch=4)
    with pytest.raises(QueueFull) as refused:
        check_room(load, 1, time.monotonic() + 1000, max_queue_images=queued, max_queue_s=1000.0)
    assert refused.value.retry_after_s == told_s
