"""The work that every contender does alike: decode a PNG, run the network, put the answer into JSON.

The runner says through two environment variables which engine and which port a contender is to take.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic_core import to_json

from app.engine import Engine, load_engine
from app.imaging import decode as decode_picture
from app.settings import Settings
from model.pictures.files import SERVED_PIXELS

ENGINE_VARIABLE = "PEERS_ENGINE"
PORT_VARIABLE = "PEERS_PORT"
MAX_BATCH = 32
IMAGE_SIZE = 32
NULL_PROBABILITIES = (0.91, 0.02, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.005, 0.005)


def engine_name() -> str:
    """Return `null`, `eager` or `checkpoint`, as the runner wishes."""
    return os.environ[ENGINE_VARIABLE]


def port() -> int:
    """Return the port that the runner wishes to be answered on."""
    return int(os.environ[PORT_VARIABLE])


class NullEngine:
    """Answers the same whatever the pictures are, at once: what is left is the service's own cost."""

    def __init__(self) -> None:
        self.card: dict[str, Any] = {
            "name": "null",
            "version": "0" * 12,
            "architecture": {"arch": "none"},
            "classes": [f"class{index}" for index in range(len(NULL_PROBABILITIES))],
            "input_size": IMAGE_SIZE,
            "device": "cpu",
            "dtype": "none",
            "runtime": "none",
        }
        self.batch_sizes: tuple[int, ...] = (MAX_BATCH,)
        self.images_per_s = 0.0
        self.overlaps = False
        self.tuning: dict[str, Any] = {}

    def run(self, images: NDArray[np.uint8], nearly_done: Callable[[], None] | None = None) -> NDArray[np.float32]:
        """Map uint8 (N, 3, S, S) to float32 (N, 10)."""
        del nearly_done  # it is done at once
        return np.tile(np.array(NULL_PROBABILITIES, np.float32), (len(images), 1))

    def close(self) -> None:
        """Nothing is held."""


class EagerEngine:
    """The shipped checkpoint as PyTorch runs it by itself: eager, in the precision that our engine would choose.

    On all cores, whatever else a server has told PyTorch.
    """

    def __init__(self, settings: Settings) -> None:
        # They bring torch with them, which nobody else here has to have in memory.
        import torch

        from app.backends.choice import resolve
        from app.commands.bench_contenders import contenders
        from model import checkpoint

        torch.set_num_threads(settings.engine_threads)
        _, device, precision = resolve(settings)
        dtype = "bfloat16" if precision == "bfloat16" else "float32"
        source = checkpoint.load(settings.weights)
        self.card: dict[str, Any] = {
            "name": source.metadata.name,
            "version": source.version,
            "classes": source.metadata.classes,
        }
        self.run = contenders(source, settings, device)[f"eager {dtype} channels-last"]()


def load(settings: Settings) -> Engine:
    """Load the engine that our service is to have: its own, unless none is wished."""
    return NullEngine() if engine_name() == "null" else load_engine(settings)


class Classifier:
    """An engine and the words around it, for the contenders that are no service of ours."""

    def __init__(self) -> None:
        settings = Settings()
        self.engine = EagerEngine(settings) if engine_name() == "eager" else load(settings)
        self.model = {key: self.engine.card[key] for key in ("name", "version")}
        self.classes = self.engine.card["classes"]

    def answers(self, pictures: list[NDArray[np.uint8]]) -> list[bytes]:
        """Return the JSON answer to each picture, uint8 (3, 32, 32), at most MAX_BATCH of them; as our service's."""
        probabilities = self.engine.run(np.stack(pictures))
        order = np.argsort(-probabilities, axis=1, kind="stable")
        ranked = np.take_along_axis(probabilities, order, axis=1).astype(float).round(6)
        return [self._json(*one) for one in zip(order.tolist(), ranked.tolist(), strict=True)]

    def _json(self, order: list[int], probabilities: list[float]) -> bytes:
        likeliest = [
            {"label": self.classes[index], "index": index, "probability": probability}
            for index, probability in zip(order, probabilities, strict=True)
        ]
        return to_json({"model": self.model, "predictions": [{**likeliest[0], "probabilities": likeliest}]})


def decode(body: bytes) -> NDArray[np.uint8]:
    """Decode a picture file to uint8 (3, 32, 32), with our service's own function. Raises ServiceError."""
    return decode_picture(bytes(body), IMAGE_SIZE, SERVED_PIXELS)
