"""A client for evaluation: many small requests at once, patient with a service that says 429 or 503."""

from __future__ import annotations

import asyncio
from typing import Annotated

import httpx
import torch
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from app.batching.batches import DECIMALS
from model.data import Dataset
from model.pictures.codec import encode_png
from model.transforms import MAX_INPUT_SIDE, MIN_SIDE

MAX_TRIES = 10

# A service rounds to DECIMALS, and what it calls 0 is less than half of the last one: 14.5 nats for an image of that
# class. Taken as it is, it would cost the 27.6 of what is impossible (model/evaluate.py).
LEAST_PROBABILITY = 0.5 * 10**-DECIMALS


class Card(BaseModel):
    """What evaluation must know of a served model: the side of its images in pixels, and its classes in their order."""

    input_size: Annotated[int, Field(ge=MIN_SIDE, le=MAX_INPUT_SIDE)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]


def fetch_card(url: str, api_key: str | None = None) -> Card:
    """Return what a service says of its model (GET /model). Raises ConnectionError if it does not."""
    if not _is_address(url):
        raise ConnectionError(f"not an http(s) URL: {url!r}")
    try:
        answer = httpx.get(f"{url.rstrip('/')}/model", headers=_authorization(api_key), timeout=60.0)
    except httpx.RequestError as error:
        raise ConnectionError(f"no answer from {url}: {type(error).__name__}") from error
    if answer.status_code != 200:
        raise ConnectionError(f"the service answered {answer.status_code}")
    try:
        return Card.model_validate_json(answer.content)
    except ValidationError as error:
        raise _other_service(url) from error


async def classify_dataset(
    url: str, dataset: Dataset, concurrency: int, api_key: str | None = None
) -> tuple[dict[str, str], Tensor]:
    """Send every image as one PNG and return (the model's name and version, float32 probabilities (N, classes)).

    None is less than LEAST_PROBABILITY.
    Raises ConnectionError if the service does not answer, refuses an image, says what no such service does, or comes to
    serve another model meanwhile: the scores would be those of neither.
    """
    probabilities = torch.zeros(len(dataset), len(dataset.classes))
    model: dict[str, str] = {}
    indices = iter(range(len(dataset)))

    async def work(client: httpx.AsyncClient) -> None:
        for index in indices:
            answer = await _post(client, encode_png(dataset.images[index].numpy()))
            try:
                content = answer.json()
                answered_by = {name: content["model"][name] for name in ("name", "version")}
                if (model or answered_by) != answered_by:
                    versions = f"from version {model['version']} to {answered_by['version']}"
                    raise ConnectionError(f"the model of {url} changed meanwhile, {versions}: evaluate it again")
                model.update(answered_by)
                for entry in content["predictions"][0]["probabilities"]:
                    probabilities[index, dataset.classes.index(entry["label"])] = entry["probability"]
            except (ValueError, LookupError, TypeError) as error:  # no JSON, or another one
                raise _other_service(url) from error

    headers = _authorization(api_key)
    limits = httpx.Limits(max_connections=concurrency)
    try:
        client = httpx.AsyncClient(base_url=url, limits=limits, headers=headers, timeout=60.0)
        async with client, asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(client))
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return model, probabilities.clamp_min(LEAST_PROBABILITY)


def _is_address(url: str) -> bool:
    try:
        parsed = httpx.URL(url)
        return parsed.scheme in {"http", "https"} and bool(parsed.host)
    except (httpx.InvalidURL, UnicodeError):  # the latter of hosts' names
        return False


def _other_service(url: str) -> ConnectionError:
    return ConnectionError(f"{url} does not answer as this service does")


def _authorization(api_key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


async def _post(client: httpx.AsyncClient, png: bytes) -> httpx.Response:
    for _ in range(MAX_TRIES):
        try:
            answer = await client.post("/predict", content=png, headers={"content-type": "image/png"})
        except httpx.RequestError as error:
            raise ConnectionError(f"no answer from {client.base_url}: {type(error).__name__}") from error
        if answer.status_code == 200:
            return answer
        if answer.status_code not in {429, 503}:
            break
        retry_after = answer.headers.get("retry-after", "")
        await asyncio.sleep(float(retry_after) if retry_after.isdecimal() else 1.0)  # some proxies give a date
    raise ConnectionError(f"the service answered {answer.status_code}")
