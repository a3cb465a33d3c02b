"""256 images in one request, in each form, against the engine's own best rate in the same run.

python -m benchmarks.large_requests
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from app.engine import CheckpointEngine, load_engine
from app.settings import Settings
from benchmarks.load import exchange, post
from benchmarks.machine import FOLDER, write
from tests.process import service_process

ROUNDS = 5
IMAGES = 256
CLIENTS = 2
SECONDS = 4.0  # of each form in a round: what begins and ends a run counts for little then
REQUESTS = 4  # of each client, at least
ENGINE_S = 2.0
# The engine's threads spin for a moment after their last batch.
PAUSE_S = 0.5


def forms(images: NDArray[np.uint8]) -> dict[str, bytes]:
    """Return one request with all of the images, uint8 (N, 3, 32, 32), in each form that takes many."""
    files = [_png(image) for image in images]
    multipart = httpx.Request("POST", "http://test", files=[("file", file) for file in files])
    array = io.BytesIO()
    np.save(array, images)
    base64s = [base64.b64encode(file).decode() for file in files]
    return {
        "multipart": post("/predict", multipart.read(), {"content-type": multipart.headers["content-type"]}),
        "json": post("/predict", json.dumps({"images": base64s}).encode(), {"content-type": "application/json"}),
        "npy": post("/predict", array.getvalue(), {"content-type": "application/x-npy"}),
    }


def examples(count: int) -> NDArray[np.uint8]:
    """Return the example pictures over and over, uint8 (count, 3, 32, 32); noise would be decoded in half the time."""
    paths = sorted((FOLDER.parent / "examples").glob("*.png"))
    pictures = [np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1) for path in paths]
    return np.stack([pictures[number % len(pictures)] for number in range(count)])


def _png(image: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def engine_rates(
    engine: CheckpointEngine, images: NDArray[np.uint8], sizes: Sequence[int] = (), each_s: float = ENGINE_S
) -> dict[int, float]:
    """Return the images per second of batches by size; without `sizes`, of the engine's from half the largest on."""
    rates = {}
    for size in sizes or [size for size in engine.batch_sizes if size * 2 >= engine.batch_sizes[-1]]:
        batches = 0
        started = time.perf_counter()
        while (seconds := time.perf_counter() - started) < each_s:
            engine.run(images[:size])
            batches += 1
        rates[size] = round(batches * size / seconds, 1)
    return rates


def best_size(rounds: list[dict[int, float]]) -> int:
    """Return the batch size with the highest median; the highest of each round would be the luckiest instead."""
    return max(rounds[0], key=lambda size: statistics.median(rates[size] for rates in rounds))


async def request_rate(port: int, request: bytes) -> float:
    """Return the images per second of CLIENTS clients in closed loop, from the first byte to the last answer."""

    async def client() -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        requests = 0
        while requests < REQUESTS or time.perf_counter() - started < SECONDS:
            await exchange(reader, writer, request)
            requests += 1
        writer.close()
        return requests

    started = time.perf_counter()
    requests = sum(await asyncio.gather(*(client() for _ in range(CLIENTS))))
    return requests * IMAGES / (time.perf_counter() - started)


def main() -> None:
    """Alternate the engine and the forms, ROUNDS times, and write the medians and the ratios."""
    settings = Settings()
    images = examples(IMAGES)
    requests = forms(images)
    engine = load_engine(settings)
    engine_rounds: list[dict[int, float]] = []
    rounds: list[dict[str, float]] = []
    # Deadlines are no matter here: on a slow machine two such requests take their time, and one would be refused.
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(Path(folder) / "log", timeout_ms=60_000, max_queue_s=60, **engine.tuning) as service,
    ):
        service.wait_ready()
        for _ in range(ROUNDS):
            engine_rounds.append(engine_rates(engine, images))
            time.sleep(PAUSE_S)
            rates = {name: asyncio.run(request_rate(service.port, request)) for name, request in requests.items()}
            rounds.append({name: round(rate, 1) for name, rate in rates.items()})
            print(engine_rounds[-1], rounds[-1], flush=True)
    size = best_size(engine_rounds)
    for rates, engine_round in zip(rounds, engine_rounds, strict=True):
        rates["engine"] = engine_round[size]
    write(
        "large_requests.json",
        {
            "command": "python -m benchmarks.large_requests",
            "tuning": engine.tuning,
            "images_in_a_request": IMAGES,
            "clients": CLIENTS,
            "images_per_s_median": {name: statistics.median(one[name] for one in rounds) for name in rounds[0]},
            "of_the_engine_median": {
                name: round(statistics.median(one[name] / one["engine"] for one in rounds), 3) for name in requests
            },
            "rounds": rounds,
        },
    )


if __name__ == "__main__":
    main()
