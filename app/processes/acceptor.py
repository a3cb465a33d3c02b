"""The port, which the engine process holds alone: it accepts connections and hands each to one HTTP process.

Were all of them to accept from one port, the one that wakes first would take whole crowds: all 64 connections of a load
generator, measured, while the other process had nothing to do for as long as they lasted. Ports of their own (Linux'
SO_REUSEPORT) are dealt by chance, and would let a second service share the port unnoticed. So a connection goes to
the process that has the fewest, and the port closes in one place. It costs the engine process some microseconds a
connection, none a request.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence

from app.http.accept_loop import REST_S, AcceptLoop
from app.http.ports import let_last_ones_in
from app.processes.shared_state import LATE_S, SharedState

# In one turn of the event loop, which has other things to do.
AT_ONCE = 64

# How often it tries again, as the port closes, where no file is left or no process takes any.
RESTS_AT_THE_END = 20

MARK = b"c"  # what a file is sent with: an empty message would be the end


class Channel:
    """What connections reach the HTTP process `index` through, which owns the socket `sock`."""

    def __init__(self, sock: socket.socket, shared: SharedState, index: int) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._shared = shared
        self._index = index
        self._handed = 0

    def hand_over(self, connection: socket.socket) -> None:
        """Give the process a connection, and close it here. Raises OSError if the process takes none or has ended."""
        socket.send_fds(self._socket, [MARK], [connection.fileno()])
        connection.close()
        self._handed += 1

    @property
    def late(self) -> bool:
        """Whether the process, or every one of its decoding threads, makes no progress."""
        return self._shared.stalled_s(self._index) > LATE_S

    @property
    def connections(self) -> int:
        """How many connections the process has, with those that are on their way."""
        return self._shared.connections(self._index, self._handed)

    def close(self) -> None:
        """Say that no more will come."""
        self._socket.close()


class Acceptor:
    """Accepts from its own `listener`, from `open` to `close`, and hands each connection to one of `channels`."""

    def __init__(self, listener: socket.socket, channels: Sequence[Channel]) -> None:
        self._listener = listener
        self._channels = channels
        self._next = 0
        self._held: socket.socket | None = None
        self._loop = AcceptLoop(listener, self._hand_one, at_once=AT_ONCE)

    def open(self) -> None:
        """Begin to accept."""
        self._loop.start()

    async def close(self) -> None:
        """Close the port. What the kernel has accepted by then is handed on.

        Where no process takes any, or no file is left, it waits, but not for long.
        """
        await let_last_ones_in([self._listener])
        self._loop.stop()
        with self._listener:
            for _ in range(RESTS_AT_THE_END):
                if self._hand_all():
                    break
                await asyncio.sleep(REST_S)
        if self._held is not None:
            self._held.close()

    def _hand_all(self) -> bool:
        """Hand on what the kernel has accepted, as far as can be now; return whether that was all."""
        while True:
            try:
                if not self._hand_one():
                    return False
            except BlockingIOError:
                return True
            except OSError:  # no file is left, or a client has left again
                return False

    def _hand_one(self) -> bool:
        """Accept a connection, or take the one that no process could take, and hand it on; return whether one has it.

        Raises OSError, such as BlockingIOError when there is none.
        """
        connection = self._held or self._listener.accept()[0]
        self._held = None
        for index in self._by_preference():
            try:
                self._channels[index].hand_over(connection)
            except OSError:  # full, or the process has just ended
                continue
            self._next = (index + 1) % len(self._channels)
            return True
        self._held = connection
        return False

    def _by_preference(self) -> Iterator[int]:
        """Yield the HTTP processes: those that make progress first, by how few connections they have, then in turn."""
        count = len(self._channels)
        in_turn = [(self._next + step) % count for step in range(count)]
        yield from sorted(in_turn, key=lambda index: (self._channels[index].late, self._channels[index].connections))
