"""What the service's own Python costs a request, without a network: connections in this process are fed bytes.

The engine answers at once; CLIENTS clients each send their next request, one picture, when they have their answer. What
counts is the processor time of the event loop's thread: HTTP, decoding, queueing, the answer, metrics.

python -m benchmarks.own_python
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import uvicorn
import uvloop
from uvicorn.server import ServerState

from app.engine_service import EngineService
from app.errors import QueueFull
from app.main import create_app
from app.routes.fast_predict import FastPredict
from app.server_options import connection_options, prepare_process
from app.settings import Settings
from benchmarks.closed_loop import PICTURES
from benchmarks.load import post
from benchmarks.peers.engine import NullEngine
from benchmarks.records import write

REQUESTS = 10_000
CLIENTS = 64
ROUNDS = 5

Pieces = tuple[bytes, ...]


def requests(name: str, header: str, cut: bool = False) -> list[Pieces]:
    """Return a request for each example picture, in one piece or, with `cut`, with the body in a second one.

    A `{}` in `header` becomes the picture's number.
    """
    headers = [{"content-type": "image/png", name: header.format(number)} for number in range(len(PICTURES))]
    whole = [post("/predict", path.read_bytes(), one) for path, one in zip(PICTURES, headers, strict=True)]
    ends = [one.index(b"\r\n\r\n") + 4 for one in whole]
    return [(one[:end], one[end:]) if cut else (one,) for one, end in zip(whole, ends, strict=True)]


ACCEPT = requests("accept", "*/*")
ID = requests("x-request-id", "4bf92f3577b34da6a3ce929d0e0e47{:02}")
# By name: the lists whose requests each client sends in turn, and the status of all answers. The known header is the
# one that the service has cached: of two headers in turn, it is neither.
FORMS: dict[str, tuple[Sequence[list[Pieces]], bytes]] = {
    "known header": ((ACCEPT,), b"200"),
    "known header, body in a second piece": ((requests("accept", "*/*", cut=True),), b"200"),
    "known header but for an id": ((ID,), b"200"),
    "another header than before": ((ACCEPT, requests("accept", "application/json")), b"200"),
    "refused in an overload": ((ACCEPT,), b"429"),
    "refused, known header but for an id": ((ID,), b"429"),
    "refused, another header than before": ((ACCEPT, requests("accept", "application/json")), b"429"),
}


class Client(asyncio.Transport):
    """A client, and the network between it and its connection, which takes no time."""

    def __init__(self, connection: asyncio.Protocol, answered: Callable[[Client, bytes], None]) -> None:
        super().__init__()
        self.connection = connection
        self.requests = 0
        self._answered = answered
        connection.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take an answer."""
        self._answered(self, bytes(data))

    def is_closing(self) -> bool:
        """Return False: a client here never closes."""
        return False

    def pause_reading(self) -> None:
        """Do nothing: a client here never sends more than one request."""

    def resume_reading(self) -> None:
        """Do nothing, as `pause_reading`."""


class ClosedLoop:
    """CLIENTS clients in closed loop."""

    def __init__(self, connect: Callable[[], asyncio.Protocol]) -> None:
        self._loop = asyncio.get_running_loop()
        self._clients = [Client(connect(), self._take) for _ in range(CLIENTS)]
        self._lists: Sequence[list[Pieces]] = ()
        self._status = b""
        self._sent = self._answers = 0
        self._done = self._loop.create_future()

    async def run(self, lists: Sequence[list[Pieces]], status: bytes) -> float:
        """Send REQUESTS requests, all to be answered with `status`; return this thread's microseconds for one."""
        self._lists, self._status, self._done = lists, b"HTTP/1.1 " + status, self._loop.create_future()
        self._sent = self._answers = 0
        begun = time.thread_time()
        for client in self._clients:
            self._send(client)
        await self._done
        return (time.thread_time() - begun) / REQUESTS * 1e6

    def _send(self, client: Client) -> None:
        pictures = self._lists[client.requests % len(self._lists)]
        for piece in pictures[self._sent % len(pictures)]:
            self._loop.call_soon(client.connection.data_received, piece)
        client.requests += 1
        self._sent += 1

    def _take(self, client: Client, answer: bytes) -> None:
        self._answers += 1
        if self._done.done():
            return
        if not answer.startswith(self._status):
            self._done.set_exception(RuntimeError(answer.decode(errors="replace")))
        elif self._answers == REQUESTS:
            self._done.set_result(None)
        elif self._sent < REQUESTS:
            self._send(client)


async def measure() -> list[dict[str, float]]:
    """Return the microseconds of a request of each form, for each of ROUNDS rounds."""
    settings = Settings()
    service = EngineService(settings, lambda _settings: NullEngine())
    await service.start()
    try:
        while service.unready_reason():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
        prepare_process()
        config = uvicorn.Config(create_app(service), **connection_options(service, CLIENTS, FastPredict(service)))
        config.load()
        protocol: Callable[..., asyncio.Protocol] = config.http_protocol_class
        load = ClosedLoop(partial(protocol, config=config, server_state=ServerState(), app_state={}))

        room = service.refuse_if_full

        def full(_count: int = 1) -> None:
            raise QueueFull(retry_after_s=1)

        rounds = []
        for number in range(ROUNDS + 1):
            took = {}
            for name, (lists, status) in FORMS.items():
                service.refuse_if_full = full if status == b"429" else room  # type: ignore[assignment, method-assign]
                took[name] = round(await load.run(lists, status), 1)
            if number:  # the first one warms up
                rounds.append(took)
                print(took, flush=True)
        return rounds
    finally:
        await service.stop()


def main() -> None:
    """Measure, the forms in turns, and write the medians."""
    rounds = uvloop.run(measure())
    medians = {name: statistics.median(one[name] for one in rounds) for name in FORMS}
    record = {"clients": CLIENTS, "requests": REQUESTS, "microseconds_median": medians, "rounds": rounds}
    write("own_python.json", {"command": "python -m benchmarks.own_python", **record})


if __name__ == "__main__":
    main()
