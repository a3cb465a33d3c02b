"""A client of plain streams: it sends bytes as they are, right or wrong, and times each answer."""

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict
    body: bytes
    seconds: float

    @property
    def problem_code(self):
        """What the problem's type ends with, None if the answer is no problem."""
        is_problem = self.headers.get("content-type") == "application/problem+json"
        return json.loads(self.body)["type"].rpartition(":")[2] if is_problem else None


class RawClient:
    """One connection, opened again when the service has closed it."""

    def __init__(self, port):
        self.port = port
        self._streams = None

    async def send(self, request):
        """Send a request, bytes or an iterable of them, as far as the service takes it, and return the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self._streams
        begun = time.perf_counter()
        sending = asyncio.create_task(self._write(writer, [request] if isinstance(request, bytes) else request))
        try:
            answer = await read_answer(reader, begun)
        finally:
            sending.cancel()
        if answer.headers.get("connection") == "close":
            await self.close()
        return answer

    async def _write(self, writer, pieces):
        with suppress(ConnectionError):  # the answer says why
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
                await asyncio.sleep(0)  # drain alone lets nothing else run as long as the service takes all

    async def close(self):
        if self._streams is not None:
            self._streams[1].close()
            with suppress(ConnectionError):
                await self._streams[1].wait_closed()
            self._streams = None


async def read_answer(reader, begun):
    """Read an answer, which always announces its length; `begun` is the time.perf_counter() of its request."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.strip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await reader.readexactly(int(headers["content-length"]))
    return Answer(int(status.split()[1]), headers, body, time.perf_counter() - begun)


async def ask_all(port, requests, clients, take):
    """Send requests, an iterable of (key, bytes), over so many connections; call `take(key, answer)` for each."""
    waiting = iter(requests)

    async def work():
        client = RawClient(port)
        for key, request in waiting:
            take(key, await client.send(request))
        await client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(work())
