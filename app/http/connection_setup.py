"""Connections between the kernel and their protocol: through a TLS handshake, or at once where there is none.

asyncio's own servers begin handshakes without a limit, and report them only when they end: clients that connect and
send nothing would hold a file each, uncounted, until none is left for anybody, probes included. Here they are few.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress

# Of a crowd of honest clients the rest waits in the kernel meanwhile, for the milliseconds that a handshake takes.
MAX_HANDSHAKES = 256

# Where all places are taken and others wait, a handshake that has had PATIENCE_S makes room for them.
PATIENCE_S = 0.5


class ConnectionSetup:
    """Brings accepted connections to the protocols that `connect` makes, at most MAX_HANDSHAKES at a time.

    With a `context` each goes through a handshake, for which it has `limit_s`; its client then has `closing_s` to take
    what is left when the connection is closed, and to close it, too. `on_open` is called with each protocol that has
    got its connection.
    """

    def __init__(
        self,
        connect: Callable[[], asyncio.Protocol],
        context: ssl.SSLContext | None,
        limit_s: float,
        closing_s: float,
        *,
        on_open: Callable[[asyncio.Protocol], None] = lambda _protocol: None,
    ) -> None:
        self._connect = connect
        self._context = context
        self._on_open = on_open
        limits = {"ssl_handshake_timeout": limit_s, "ssl_shutdown_timeout": closing_s}
        self._limits = {} if context is None else limits
        self._begun: dict[asyncio.Task[None], float] = {}  # when, the oldest first

    def __len__(self) -> int:
        """Return how many are under way."""
        return len(self._begun)

    def has_room(self) -> bool:
        """Return whether another one may begin; the oldest makes room for it if that has had PATIENCE_S."""
        return len(self._begun) < MAX_HANDSHAKES or self._oldest_is_late()

    def _oldest_is_late(self) -> bool:
        return asyncio.get_running_loop().time() - next(iter(self._begun.values())) >= PATIENCE_S

    def begin(self, connection: socket.socket) -> None:
        """Take over an accepted connection."""
        if len(self._begun) >= MAX_HANDSHAKES and self._oldest_is_late():
            oldest = next(iter(self._begun))
            del self._begun[oldest]
            oldest.cancel()
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._bring(connection), name="handshake")
        self._begun[task] = loop.time()
        task.add_done_callback(lambda ended: self._begun.pop(ended, None))

    async def _bring(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        with suppress(OSError):  # the client has gone, or its handshake failed
            protocol = self._connect()  # with TLS uvloop would return one of its own
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol, connection, ssl=self._context, **self._limits
            )
            self._on_open(protocol)

    async def finish(self, seconds: float) -> None:
        """Wait for those under way, for at most `seconds`."""
        if self._begun:
            await asyncio.wait([*self._begun], timeout=seconds)
