"""What the batcher is asked for when another engine is to take over."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from app.batching.batches import Run
from app.batching.jobs import ModelIdentity


@dataclass(frozen=True, slots=True)
class Swap:
    """An engine that is to take over; `done` once it has."""

    run: Run
    model: ModelIdentity
    done: asyncio.Future[None]
