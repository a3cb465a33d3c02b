"""A client for evaluation: many small requests at once, patient with a service that says 429 or 503."""

from __future__ import annotations

import asyncio
import io
from typing import Any

import httpx
import torch
from PIL import Image
from torch import Tensor

from model.data import Dataset

MAX_TRIES = 10


def fetch_card(url: str, api_key: str | None = None) -> dict[str, Any]:
    """Return what a service says of its model (GET /model). Raises ConnectionError if it does not."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/model", headers=_authorization(api_key), timeout=60.0)
    except httpx.TransportError as error:
        raise ConnectionError(f"no answer from {url}: {type(error).__name__}") from error
    if answer.status_code != 200:
        raise ConnectionError(f"the service answered {answer.status_code}")
    return answer.json()  # type: ignore[no-any-return]


async def classify_dataset(
    url: str, dataset: Dataset, concurrency: int, api_key: str | None = None
) -> tuple[dict[str, str], Tensor]:
    """Send every image as one PNG and return (the model's name and version, float32 probabilities (N, classes)).

    Raises ConnectionError if the service does not answer, or refuses an image.
    """
    probabilities = torch.zeros(len(dataset), len(dataset.classes))
    model: dict[str, str] = {}
    indices = iter(range(len(dataset)))

    async def work(client: httpx.AsyncClient) -> None:
        for index in indices:
            answer = await _post(client, _png(dataset.images[index]))
            model.update(answer["model"])
            for one in answer["predictions"][0]["probabilities"]:
                probabilities[index, dataset.classes.index(one["label"])] = one["probability"]

    headers = _authorization(api_key)
    limits = httpx.Limits(max_connections=concurrency)
    try:
        client = httpx.AsyncClient(base_url=url, limits=limits, headers=headers, timeout=60.0)
        async with client, asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(client))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return model, probabilities


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def _png(image: Tensor) -> bytes:
    """Encode uint8 (3, S, S)."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


async def _post(client: httpx.AsyncClient, png: bytes) -> dict[str, Any]:
    for _ in range(MAX_TRIES):
        try:
            answer = await client.post("/predict", content=png, headers={"content-type": "image/png"})
        except httpx.TransportError as error:
            raise ConnectionError(f"no answer from {client.base_url}: {type(error).__name__}") from error
        if answer.status_code == 200:
            return answer.json()  # type: ignore[no-any-return]
        if answer.status_code not in {429, 503}:
            break
        await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
    raise ConnectionError(f"the service answered {answer.status_code}")
