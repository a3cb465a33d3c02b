"""What exists only once an engine does: the engine, the batcher before it, the decoder before that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from pydantic_core import to_json

from app.batcher import Batcher
from app.batching.admission import Load
from app.batching.jobs import Images, Job, ModelIdentity, Ticket
from app.imaging import Decoder

if TYPE_CHECKING:  # a process without an engine never needs it
    from app.engine import Engine


class Queue(Protocol):
    """What requests see of a batcher: this process' own (Batcher), or that of the engine process (RemoteBatcher)."""

    model: ModelIdentity

    @property
    def load(self) -> Load:
        """What the engine has to do, and how quick it is."""

    @property
    def queued_images(self) -> int:
        """Images that are admitted and not yet in a batch, those being decoded included."""

    @property
    def alive(self) -> bool:
        """Whether what is submitted will be computed."""

    def require_room(self, count: int, deadline: float) -> None:
        """Raise QueueFull if `count` images could not be admitted, EngineFailed if the engine is dead."""

    def admit(self, count: int, deadline: float) -> Ticket:
        """Reserve places for `count` images. Raises what `require_room` raises."""

    def submit(self, ticket: Ticket, images: Images, deadline: float) -> Job:
        """Queue uint8 (N, 3, S, S), 1 <= N <= the ticket's places; `deadline` is a time.monotonic()."""

    def stalled_s(self) -> float:
        """Return for how many seconds there has been work and no progress."""

    async def close(self) -> None:
        """End it; what still waits fails with EngineFailed."""


class Predictor:
    """What a prediction passes through, as requests see it. `card` is what the served checkpoint says of itself.

    `openings` are how the JSON of each class begins in answers: '{"label":"cat","index":3,"probability":'. Made at the
    start, where a label that is no text ends the service and not a request.
    """

    def __init__(self, card: dict[str, Any], batcher: Queue, decoder: Decoder) -> None:
        self.card = card
        self.batcher = batcher
        self.decoder = decoder
        self.classes: list[str] = card["classes"]
        self.openings = [_opening(label, index) for index, label in enumerate(self.classes)]
        self.input_size: int = card["input_size"]

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


class EnginePredictor(Predictor):
    """The predictor around an engine of this process, which can be swapped; classes and input size stay the same."""

    def __init__(self, engine: Engine, batcher: Batcher, decoder: Decoder) -> None:
        super().__init__(engine.card, batcher, decoder)
        self.engine = engine
        self.batcher: Batcher = batcher

    async def swap_engine(self, engine: Engine) -> None:
        """Let another engine of the same classes and input size take over; returns once the old one is done with."""
        await self.batcher.swap(engine.run, identity_of(engine.card))
        self.engine = engine
        self.card = engine.card

    async def close(self) -> None:
        """End batcher and decoder, and close the engine; what still waits fails."""
        await self.batcher.close(self.engine.close)
        self.decoder.close()


def _opening(label: str, index: int) -> str:
    return to_json({"label": label, "index": index})[:-1].decode() + ',"probability":'


def identity_of(card: dict[str, Any]) -> ModelIdentity:
    """Return the name and version that answers carry, from what a checkpoint says of itself."""
    return {"name": card["name"], "version": card["version"]}
