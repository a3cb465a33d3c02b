"""256 images in one request, in each form, against the engine's own best rate before and after it.

All of it is on the CPU, also where there is a GPU.

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
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from app.engine import load_engine
from app.settings import Settings
from benchmarks.load import exchange, post
from benchmarks.pace import PAUSE_S, best_batch, engine_rate, examples, shares_of_engine_rate
from benchmarks.records import write
from model.pictures.codec import encode_png
from tests.process import service_process

ROUNDS = 9
IMAGES = 256
CLIENTS = 2
SECONDS = 4.0  # of each form in a round: so long that a run's beginning and end count for little
REQUESTS = 4  # of each client, at least


def forms(images: NDArray[np.uint8]) -> dict[str, bytes]:
    """Return one request with all of the images, uint8 (N, 3, 32, 32), in each form that takes many."""
    files = [encode_png(image) for image in images]
    multipart = httpx.Request("POST", "http://test", files=[("file", file) for file in files])
    array = io.BytesIO()
    np.save(array, images)
    base64s = [base64.b64encode(file).decode() for file in files]
    return {
        "multipart": post("/predict", multipart.read(), {"content-type": multipart.headers["content-type"]}),
        "json": post("/predict", json.dumps({"images": base64s}).encode(), {"content-type": "application/json"}),
        "npy": post("/predict", array.getvalue(), {"content-type": "application/x-npy"}),
    }


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
    settings = Settings(device="cpu")
    images = examples(IMAGES)
    requests = forms(images)
    engine = load_engine(settings)
    runs: list[tuple[str, float]] = []
    # Long deadlines: on a slow machine, one of two such requests would be refused.
    with (
        tempfile.TemporaryDirectory() as folder,
        service_process(
            Path(folder) / "log", device="cpu", timeout_ms=60_000, max_queue_s=60, **engine.tuning
        ) as service,
    ):
        service.wait_ready()
        batch, sizes = best_batch(engine, images)
        paces = [engine_rate(engine, batch)]
        for name in ROUNDS * [*requests]:
            time.sleep(PAUSE_S)
            runs.append((name, round(asyncio.run(request_rate(service.port, requests[name])), 1)))
            time.sleep(PAUSE_S)
            paces.append(engine_rate(engine, batch))
            print(*runs[-1], paces[-1], flush=True)
    shares = shares_of_engine_rate(runs, paces)
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
            "shares_of_engine_rate": shares,
            "images_per_s": rates,
        },
    )


if __name__ == "__main__":
    main()
