"""256 images in one request, in each form, against the engine's own best rate before and after it.

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

from app.batch_sizes import ladder
from app.engine import CheckpointEngine, load_engine
from app.settings import Settings
from benchmarks.load import exchange, post
from benchmarks.machine import FOLDER, write
from tests.process import service_process

ROUNDS = 9
IMAGES = 256
CLIENTS = 2
SECONDS = 4.0  # of each form in a round: what begins and ends a run counts for little then
REQUESTS = 4  # of each client, at least
SIZE_ROUNDS = 9
SIZE_S = 0.6  # of each size in one of them, a few batches
PACE_S = 2.0  # before and after each run
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
    engine: CheckpointEngine, images: NDArray[np.uint8], sizes: Sequence[int] = (), each_s: float = SIZE_S
) -> dict[int, float]:
    """Return the images per second of batches by size; without `sizes`, of a few from half the engine's largest on."""
    largest = engine.batch_sizes[-1]
    sizes = sizes or [size for size in ladder(largest, 4) if size * 2 >= largest and size in engine.batch_sizes]
    return {size: engine_rate(engine, images[:size], each_s) for size in sizes}


def engine_rate(engine: CheckpointEngine, batch: NDArray[np.uint8], least_s: float = PACE_S) -> float:
    """Return the images per second of one batch over and over."""
    batches = 0
    started = time.perf_counter()
    while (seconds := time.perf_counter() - started) < least_s:
        engine.run(batch)
        batches += 1
    return round(batches * len(batch) / seconds, 1)


def best_size(rounds: list[dict[int, float]]) -> int:
    """Return the batch size with the highest median; the highest of each round would be the luckiest instead.

    Its rate is to be measured anew: that of the best of many, as it was when it was chosen, owes something to luck.
    """
    return max(rounds[0], key=lambda size: statistics.median(rates[size] for rates in rounds))


def of_the_engine(runs: Sequence[tuple[str, float]], paces: Sequence[float]) -> dict[str, list[float]]:
    """Return by name what share of the engine's rate each run of a service had.

    The engine was measured before the first run and after each: a machine's pace changes within minutes, for both.
    """
    shares: dict[str, list[float]] = {}
    for (name, rate), before, after in zip(runs, paces, paces[1:], strict=False):
        shares.setdefault(name, []).append(round(2 * rate / (before + after), 4))
    return shares


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
    """Alternate the engine and each of the forms, ROUNDS times, and write the medians and the ratios."""
    settings = Settings()
    images = examples(IMAGES)
    requests = forms(images)
    engine = load_engine(settings)
    runs: list[tuple[str, float]] = []
    # Deadlines are no matter here: on a slow machine two such requests take their time, and one would be refused.
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(Path(folder) / "log", timeout_ms=60_000, max_queue_s=60, **engine.tuning) as service,
    ):
        service.wait_ready()
        sizes = [engine_rates(engine, images) for _ in range(SIZE_ROUNDS)]
        batch = images[: best_size(sizes)]
        paces = [engine_rate(engine, batch)]
        for name in ROUNDS * [*requests]:
            time.sleep(PAUSE_S)
            runs.append((name, round(asyncio.run(request_rate(service.port, requests[name])), 1)))
            paces.append(engine_rate(engine, batch))
            print(*runs[-1], paces[-1], flush=True)
    shares = of_the_engine(runs, paces)
    rates = {name: [rate for each, rate in runs if each == name] for name in requests}
    rates["engine"] = paces
    write(
        "large_requests.json",
        {
            "command": "python -m benchmarks.large_requests",
            "tuning": engine.tuning,
            "images_in_a_request": IMAGES,
            "clients": CLIENTS,
            "engine_batch_size": len(batch),
            "engine_images_per_s_by_size": sizes,
            "images_per_s_median": {name: statistics.median(many) for name, many in rates.items()},
            "of_the_engine_median": {name: round(statistics.median(many), 4) for name, many in shares.items()},
            "of_the_engine": shares,
            "images_per_s": rates,
        },
    )


if __name__ == "__main__":
    main()
