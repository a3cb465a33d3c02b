"""What lies in a transport because its client does not read: for a while, and not too much of all clients together."""

from __future__ import annotations

import asyncio

from app.errors import UNREAD_RESPONSE, QueueFull
from app.http.connection_limits import ConnectionLimits


class UnreadResponse:
    """Aborts a connection whose client does not read its response in time, or at once where too much is unread."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._bytes = 0  # in the limits' count
        self.timer: asyncio.TimerHandle | None = None

    def pause(self, transport: asyncio.Transport) -> None:
        """The client has stopped to read: count what lies there, and give it a while."""
        unread = transport.get_write_buffer_size()
        try:
            self._limits.unread.take(unread)
        except QueueFull:
            self.refuse(transport)
            return
        self._bytes += unread
        self.abort_later(transport)

    def refuse(self, transport: asyncio.Transport) -> None:
        """End the connection: too much is unread already."""
        self._limits.on_refused(UNREAD_RESPONSE)
        transport.abort()

    def abort_later(self, transport: asyncio.Transport) -> None:
        """Give the client a while for what is left, if it has none yet."""
        if self.timer is None:
            self.timer = asyncio.get_running_loop().call_later(self._limits.unread_timeout_s, transport.abort)

    def resume(self, *, ending: bool = False) -> None:
        """The client has read, or has gone. While the connection is `ending` its time goes on."""
        self._limits.unread.give_back(self._bytes)
        self._bytes = 0
        if self.timer is not None and not ending:
            self.timer.cancel()
            self.timer = None
