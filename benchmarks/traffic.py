"""Mixed traffic for the soak: clients that are good, bad, slow, or leave before their answer.

Good clients check each answer's status, and compare its probabilities with those computed offline with the weights that
it names. Bad clients check that they are refused with the right status.
"""

from __future__ import annotations

import asyncio
import base64
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray

from benchmarks.load import multipart, post
from tests.bad_requests import BAD
from tests.slow_clients import KINDS, until_closed

GOOD, INVALID, SLOW, LEAVING = 6, 1, 8, 2
IMAGES_OF_LEAVING = 16
MAX_PICTURES = 8
PAUSE_S = 0.1
TOLERANCE = 1e-3
PNG = {"content-type": "image/png"}
BOUNDARY = "soak"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"

# Requests that are refused, the bodies of BAD among them: method, path, options of httpx, status.
REFUSED: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/nothing", {}, 404),
    ("GET", "/predict", {}, 405),
    ("POST", "/predict", {"content": b"{}", "headers": {"content-type": "text/plain"}}, 415),
    ("POST", "/predict?top_k=0", {"content": b"x", "headers": PNG}, 422),
    ("POST", "/predict", {"files": [("file", b"x")] * 1000}, 413),
    ("POST", "/predict", {"files": [("other", b"x")]}, 400),
    *[("POST", "/predict", {"content": body, "headers": headers}, status) for body, headers, status, _ in BAD.values()],
]


@dataclass
class Tally:
    """The outcomes of all requests: counts by kind of client and status, and the problems found."""

    answers: Counter[str] = field(default_factory=Counter)
    verified_images: int = 0
    versions: Counter[str] = field(default_factory=Counter)
    largest_difference: float = 0.0
    problems: list[str] = field(default_factory=list)


def encoded(form: str, pictures: Sequence[bytes]) -> tuple[bytes, str]:
    """Return the body and content type of a request for some pictures, of the first if the form is `raw`."""
    if form == "raw":
        return pictures[0], "application/octet-stream"
    if form == "multipart":
        return multipart(pictures, BOUNDARY), MULTIPART
    return json.dumps({"images": [base64.b64encode(one).decode() for one in pictures]}).encode(), "application/json"


class Traffic:
    """All clients of one port. `expected` has by version the offline probabilities, float32 (pictures, classes)."""

    def __init__(self, port: int, pictures: list[bytes], expected: Mapping[str, NDArray[np.float32]]) -> None:
        self.port = port
        self.pictures = pictures
        self.expected = expected
        self.tally = Tally()
        self.open = asyncio.Event()  # cleared while no service is there
        self.open.set()
        self._stopping = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the clients while the block runs; then wait for the answers that good and bad clients still wait for."""
        self._stopping = False
        patient = [self._asking(self._good, number) for number in range(GOOD)]
        patient += [self._asking(self._bad, number) for number in range(INVALID)]
        others = [self._ignoring(until_closed, KINDS[number % len(KINDS)]) for number in range(SLOW)]
        others += [self._leaving(random.Random(number)) for number in range(LEAVING)]
        tasks = [asyncio.create_task(one) for one in patient]
        rude = [asyncio.create_task(one) for one in others]
        try:
            yield
            self._stopping = True
            await asyncio.gather(*tasks)
        finally:
            for one in tasks + rude:
                one.cancel()
            await asyncio.gather(*tasks, *rude, return_exceptions=True)

    async def _asking(self, ask: Callable[[httpx.AsyncClient, random.Random], Awaitable[None]], number: int) -> None:
        """Send requests until the end. A refused connection is no fault; one that breaks later has lost a request."""
        rng = random.Random(number)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=120) as http:
            while not self._stopping:
                await self.open.wait()
                try:
                    await ask(http, rng)
                except httpx.ConnectError:
                    self.tally.answers["not accepted"] += 1
                except httpx.TransportError as error:
                    self.tally.problems.append(f"{ask.__name__[1:]} client: no answer: {error!r}")
                await asyncio.sleep(rng.uniform(0, 2 * PAUSE_S))

    async def _good(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Send some pictures in one of the three forms and check the answer."""
        chosen = rng.choices(range(len(self.pictures)), k=rng.randint(1, MAX_PICTURES))
        form = rng.choice(("raw", "multipart", "json"))
        if form == "raw":
            chosen = chosen[:1]
        body, kind = encoded(form, [self.pictures[index] for index in chosen])
        answer = await http.post("/predict", content=body, headers={"content-type": kind})
        self.tally.answers[f"good {answer.status_code}"] += 1
        if answer.status_code == 200:
            self._verify(chosen, answer.json())
        else:
            self.tally.problems.append(f"good client: {answer.status_code} {answer.text[:200]}")

    def _verify(self, chosen: list[int], body: dict[str, Any]) -> None:
        """Compare an answer with the offline probabilities of the version that it names."""
        version = body["model"]["version"]
        rows = [sorted(each["probabilities"], key=lambda one: one["index"]) for each in body["predictions"]]
        served = np.array([[one["probability"] for one in row] for row in rows])
        difference = float(np.abs(served - self.expected[version][chosen]).max())
        self.tally.verified_images += len(chosen)
        self.tally.versions[version] += 1
        self.tally.largest_difference = max(self.tally.largest_difference, difference)
        if not difference <= TOLERANCE:
            self.tally.problems.append(f"good client: an answer of {version} is off by {difference:.4f}")

    async def _bad(self, http: httpx.AsyncClient, rng: random.Random) -> None:
        """Send a request that must be refused, and check the status."""
        method, path, options, status = rng.choice(REFUSED)
        try:
            answer = await http.request(method, path, **options)
        except (httpx.ReadError, httpx.WriteError):
            if status != 413:
                raise
            self.tally.answers["bad, closed while sending too much"] += 1  # a refused body is read for seconds only
            return
        self.tally.answers[f"bad {answer.status_code}"] += 1
        if answer.status_code != status:
            self.tally.problems.append(f"bad client: {method} {path}: {answer.status_code} in place of {status}")

    async def _ignoring(
        self, act: Callable[[int, Any], Awaitable[object]], argument: Callable[[Any], Awaitable[None]]
    ) -> None:
        """Be one slow client after another."""
        while True:
            await self.open.wait()
            with suppress(OSError):
                await act(self.port, argument)
            self.tally.answers["slow"] += 1
            await asyncio.sleep(PAUSE_S)

    async def _leaving(self, rng: random.Random) -> None:
        """Close the connection in the middle of a body or while many pictures wait, in order or by a reset."""
        body = multipart([self.pictures[0]] * IMAGES_OF_LEAVING, BOUNDARY)
        request = post("/predict", body, {"content-type": MULTIPART})
        while True:
            await self.open.wait()
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.write(request if rng.random() < 0.5 else request[: rng.randrange(1, len(request))])
                await asyncio.sleep(rng.uniform(0, 0.2))
                if rng.random() < 0.5:
                    writer.close()
                else:
                    writer.transport.abort()
            self.tally.answers["leaving"] += 1
            await asyncio.sleep(rng.uniform(0, 10 * PAUSE_S))
