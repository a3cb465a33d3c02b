"""A running batcher, and requests to it."""

import asyncio
import math
import time
from contextlib import asynccontextmanager

import numpy as np

from app.batcher import Batcher

MODEL = {"name": "fake", "version": "1"}


def pictures(count, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)


@asynccontextmanager
async def running(engine, **options):
    options = {"max_batch": 4, "max_queue_images": 64} | options
    batcher = Batcher(engine.run, MODEL, **options)
    batcher.start()
    try:
        yield batcher
    finally:
        engine.release()
        await batcher.close()


def submit(batcher, images, seconds=30.0):
    job = batcher.submit(batcher.admit(len(images), math.inf), images, time.monotonic() + seconds)
    return asyncio.ensure_future(outcome_of(job))


async def outcome_of(job):
    """Fail rather than wait for ever where a batch is never begun."""
    async with asyncio.timeout(40):
        return await job.future


async def occupied(engine, batcher):
    """Fill the engine with one image, so that what follows has to queue."""
    engine.hold()
    first = submit(batcher, pictures(1, seed=99))
    assert await asyncio.to_thread(engine.entered.wait, 10)
    engine.entered.clear()
    return first
