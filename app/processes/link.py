"""One end of the socket between the engine process and an HTTP process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Mapping
from typing import cast

from app.processes.frames import FrameDecoder, Kind, Payload, frame

log = logging.getLogger(__name__)


class Link(asyncio.Protocol):
    """Hands each frame to the handler of its kind; what is sent in one turn of the event loop goes in one write.

    `on_turn` is called after each piece of data, and again once what that has set going has run, and before each write;
    `on_lost` once, when the other process has gone.
    Writes are not held back: admission bounds what images take, and everything else is small.
    """

    def __init__(
        self,
        handlers: Mapping[int, Callable[[Payload], None]],
        on_lost: Callable[[], None],
        on_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._handlers = handlers
        self._on_lost = on_lost
        self._on_turn = on_turn
        self._frames = FrameDecoder()
        self._waiting: list[bytes] = []
        self._turn_comes = False
        self._transport: asyncio.Transport | None = None
        self.lost = asyncio.Event()

    async def open(self, sock: socket.socket) -> None:
        """Begin to listen and speak."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=sock)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take what carries the bytes."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Take apart and hand on."""
        for kind, payload in self._frames.feed(data):
            self._handlers[kind](payload)
        self._on_turn()
        self._turn_soon()

    def connection_lost(self, error: Exception | None) -> None:
        """The other process has ended, or this one has closed."""
        self.lost.set()
        self._on_lost()

    def send(self, kind: Kind, payload: Payload = b"") -> None:
        """Send a frame soon."""
        self.send_frame(frame(kind, payload))

    def send_frame(self, packed: bytes) -> None:
        """Send a frame that is packed already."""
        self._waiting.append(packed)
        self._turn_soon()

    def _turn_soon(self) -> None:
        if not self._turn_comes:
            self._turn_comes = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_comes = False
        self.flush()

    def flush(self) -> None:
        """Send what waits."""
        self._on_turn()
        if self._waiting and self._transport is not None and not self.lost.is_set():
            self._transport.write(b"".join(self._waiting))
        self._waiting.clear()

    async def close(self) -> None:
        """Send what waits, then close."""
        self.flush()
        if self._transport is not None:
            self._transport.close()
            await self.lost.wait()
