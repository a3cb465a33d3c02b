"""How a connection ends: once all is sent, or slowly where its client may still be sending, and always in time.

A transport closes once all is sent, which a client that does not read never lets it, and TLS waits for the client's
part of the end, for which an idle one may never wake up. So every way to end a connection here sets a time limit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import UNREAD_RESPONSE, QueueFull
from app.http.connection_limits import ConnectionLimits

# A refused client may send its body all the same, without waiting for 100 Continue: at most DISCARD_BYTES of it are
# thrown away, for DISCARD_S at most. More is an attack.
DISCARD_BYTES = 64 << 20
DISCARD_S = 5.0

# How long the client's part of the end may take once it has read all that was sent.
LAST_S = 3.0


class Ending:
    """The end of one connection, and until then the time that its client has for what it has not read."""

    def __init__(self, limits: ConnectionLimits, transport: asyncio.Transport) -> None:
        self._limits = limits
        self._transport = transport
        self.lingers = False  # nothing is sent any more, and what comes is thrown away
        self._linger_bytes = DISCARD_BYTES  # how many more are thrown away
        self._unread_bytes = 0  # in the limits' count, since the client stopped reading
        self._held_bytes = 0  # the same, of a response that is sent in pieces
        self._paused = False
        self._linger_timer: asyncio.TimerHandle | None = None
        self._abort_timer: asyncio.TimerHandle | None = None

    # -- what the client does not read

    def require_room(self, count: int) -> None:
        """Raise QueueFull if a response of `count` bytes could not be counted as unread."""
        self._limits.unread.require_room(self._limited(count))

    def _limited(self, count: int) -> int:
        """Return what a response of `count` bytes counts: one that is larger than the limit is sent if it is alone."""
        return min(count, self._limits.unread.max_bytes)

    @contextmanager
    def holding(self, count: int) -> Iterator[None]:
        """Count a response of `count` bytes as unread while it is sent in pieces. Raises QueueFull."""
        count = self._limited(count)
        self._limits.unread.take(count)
        self._held_bytes = count
        try:
            yield
        finally:
            self._held_bytes = 0
            left = min(count, self._transport.get_write_buffer_size()) if self._paused else 0
            self._unread_bytes += left  # of its last piece, until the client reads it
            self._limits.unread.give_back(count - left)

    def is_unread(self) -> bool:
        """Whether there is anything that the client has not read."""
        return self._paused or self._transport.get_write_buffer_size() > 0

    def pause(self) -> None:
        """Count what the client, which has stopped reading, leaves unread, and limit its time."""
        self._paused = True
        unread = self._limited(max(0, self._transport.get_write_buffer_size() - self._held_bytes))
        try:
            self._limits.unread.take(unread)
        except QueueFull:  # and no answer can be sent: this one has begun
            self._limits.on_refused(UNREAD_RESPONSE)
            self._transport.abort()
            return
        self._unread_bytes += unread
        self._abort_in(self._limits.unread_timeout_s)

    def resume(self) -> None:
        """Count nothing as unread: the client has read. Lift the limit unless the connection is ending."""
        self._give_back()
        if self._abort_timer is not None and not (self.lingers or self._transport.is_closing()):
            self._abort_timer.cancel()
            self._abort_timer = None

    # -- how it ends

    def close(self) -> None:
        """Close when all is sent; the client has `unread_timeout_s` to read it."""
        self._close_in(self._limits.unread_timeout_s)

    def close_idle(self) -> None:
        """Close a connection on which nothing is under way; the client may not have taken all of its last response."""
        self._close_in(self._limits.unread_timeout_s if self._transport.get_write_buffer_size() else LAST_S)

    def linger(self, seconds: float) -> None:
        """Send no more, and throw away what comes until the client closes, for at most `seconds`.

        A refused client may still be sending. Closing at once would reset the connection, and take the refusal with it.
        """
        self.lingers = True
        if self._transport.can_write_eof():
            self._transport.write_eof()
            self._linger_timer = asyncio.get_running_loop().call_later(seconds, self.close)
        else:  # TLS has no such end
            self._close_in(seconds)

    def throw_away(self, count: int) -> None:
        """Count bytes that came while it lingers; abort if there are too many."""
        self._linger_bytes -= count
        if self._linger_bytes < 0:
            self._transport.abort()

    def over(self) -> None:
        """Stop the timers and count nothing as unread: the connection is lost."""
        self._give_back()
        for timer in (self._linger_timer, self._abort_timer):
            if timer is not None:
                timer.cancel()

    def _give_back(self) -> None:
        self._paused = False
        self._limits.unread.give_back(self._unread_bytes)
        self._unread_bytes = 0

    def _close_in(self, seconds: float) -> None:
        self._transport.close()
        self._abort_in(seconds)

    def _abort_in(self, seconds: float) -> None:
        """Abort in `seconds`, or earlier if the timer has been set so."""
        loop = asyncio.get_running_loop()
        if self._abort_timer is not None:
            if self._abort_timer.when() <= loop.time() + seconds:
                return
            self._abort_timer.cancel()
        self._abort_timer = loop.call_later(seconds, self._transport.abort)
