"""What exists only once an engine does: the engine, the batcher before it, the decoder before that."""

from __future__ import annotations

from typing import Any

from app.batcher import Batcher
from app.engine import Engine
from app.imaging import Decoder
from app.jobs import ModelName


class Parts:
    """The parts that predict. The engine can be exchanged; classes and input size stay what they are."""

    def __init__(self, engine: Engine, batcher: Batcher, decoder: Decoder) -> None:
        self.engine = engine
        self.batcher = batcher
        self.decoder = decoder
        self.classes: list[str] = engine.card["classes"]
        self.input_size: int = engine.card["input_size"]

    @property
    def card(self) -> dict[str, Any]:
        """What the checkpoint that is served says of itself."""
        return self.engine.card

    async def adopt(self, engine: Engine) -> None:
        """Let another engine of the same classes and input size take over; returns once the old one is done with."""
        await self.batcher.swap(engine.run, name_of(engine))
        self.engine = engine

    def stalled(self, timeout_s: float) -> str | None:
        """Return what has had work and made no progress for longer than that, or None."""
        for name, part in (("engine", self.batcher), ("decoder", self.decoder)):
            if part.stalled_s() > timeout_s:
                return f"the {name} makes no progress"
        return None

    async def close(self) -> None:
        """End batcher and decoder; what still waits fails."""
        await self.batcher.close()
        self.decoder.close()


def name_of(engine: Engine) -> ModelName:
    """Return what answers say of the model."""
    return {"name": engine.card["name"], "version": engine.card["version"]}
