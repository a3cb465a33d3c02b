"""uvicorn with an end of our own: it closes its port without a loss, and finishes what it accepted."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import uvicorn

from app.http.accept_loop import AcceptLoop
from app.http.connection_setup import ConnectionSetup
from app.http.connections import Connection
from app.http.fast_connections import FastConnection
from app.http.ports import let_last_ones_in
from app.service import Service

# Once the port is closed, requests that a connection's buffer already holds get this long to be read and begun.
LINGER_S = 0.2
# And connections on which nothing has been sent yet get this long: clients send sooner, unless their machine is busy.
NEWCOMERS_S = 1.0
LOOK_AGAIN_S = 0.02

# uvloop accepts one connection a turn for each descriptor of a port. With one descriptor a crowd is let in at the pace
# of the turns, tens a second under load, and a probe that comes behind it waited for sixteen seconds.
LISTENERS = 16

# After a failure what waits has its answer: this long for answers that are being sent, and for clients that are slow.
AFTER_FAILURE_S = 2.0


class Server(uvicorn.Server):
    """Serves until `exit_soon`, or a failure of the service. Signals are left to whoever runs it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._connection_setup: ConnectionSetup  # once `config` has been loaded
        self._tls_listeners: dict[socket.socket, AcceptLoop] = {}
        self._connections_end = False  # whether all that were there have been told to
        service.lifecycle.on_failure = self.exit_soon

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no handlers, where uvicorn would."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port. With TLS its connections are accepted here, so that unfinished handshakes are few."""
        if self.config.ssl is not None and self.service.certificate is not None:
            self.service.certificate.listen_with(self.config.ssl)
        settings = self.service.settings
        limits_s = settings.header_timeout_s, settings.keep_alive_s
        self._connection_setup = ConnectionSetup(self._connection, self.config.ssl, *limits_s, on_open=self._opened)
        if self.config.ssl is None:
            await super().startup(sockets)
            if not self.should_exit:
                await self._listen_more()
            return
        await super().startup([])
        if not self.should_exit:
            for listener in sockets or ():
                begin = partial(self._begin_handshake, listener)
                self._tls_listeners[listener] = loop = AcceptLoop(listener, begin, at_once=LISTENERS)
                loop.start()

    def _begin_handshake(self, listener: socket.socket) -> bool:
        """Take a connection that waits at a port with TLS, if there is room for its handshake."""
        if self._connection_setup.has_room():
            self._connection_setup.begin(listener.accept()[0])
            return True
        return False

    async def _listen_more(self) -> None:
        """Let the event loop accept LISTENERS connections of a port in each of its turns."""
        for listener in [listener for server in self.servers for listener in server.sockets]:
            for _ in range(LISTENERS - 1):
                self.servers.append(
                    await asyncio.get_running_loop().create_server(
                        self._connection, sock=_duplicate(listener), backlog=self.config.backlog
                    )
                )

    def _connection(self) -> asyncio.Protocol:
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )

    def exit_soon(self) -> None:
        """Close the port soon, finish what was accepted, and end."""
        self.should_exit = True

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Close the port, give buffered requests a moment to begin, then let uvicorn finish the rest."""
        for connection in await self._close_port():
            self._connection_setup.begin(connection)
        await self._connection_setup.finish(LINGER_S)  # one may take far longer than a drain has
        await asyncio.sleep(LINGER_S)
        await self._hear_newcomers()
        self._connections_end = True  # uvicorn tells them before anything else
        await super().shutdown(None)

    def _opened(self, connection: asyncio.Protocol) -> None:
        """Let a connection whose handshake ended late, as all others were ending, end as well: after NEWCOMERS_S."""
        if self._connections_end:
            asyncio.get_running_loop().call_later(NEWCOMERS_S, self._end_newcomer, connection)

    def _end_newcomer(self, connection: asyncio.Protocol) -> None:
        if isinstance(connection, Connection) and connection in self.server_state.connections:
            connection.shutdown()

    async def _wait_tasks_to_complete(self) -> None:
        """Wait as uvicorn does, which limits it, but not for long after a failure, even one that comes meanwhile.

        Then refuse requests whose small bodies are awaited.
        They have no tasks, which uvicorn cancels when the time is over; what is written here is sent while the lifespan
        ends.
        """
        try:
            async with self.service.lifecycle.time_limit(None, after_failure_s=AFTER_FAILURE_S):
                await super()._wait_tasks_to_complete()
        finally:
            for connection in list(self.server_state.connections):
                if isinstance(connection, FastConnection):
                    connection.give_up_body()

    async def _hear_newcomers(self) -> None:
        """Wait until every connection has begun a request, NEWCOMERS_S at most: some are only kept ready."""
        for _ in range(round(NEWCOMERS_S / LOOK_AGAIN_S)):
            if all(getattr(connection, "heard", True) for connection in self.server_state.connections):
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    async def _close_port(self) -> list[socket.socket]:
        """Close the port, and return the connections that the kernel had accepted and the event loop not yet.

        Their clients have sent requests, perhaps; closing the port alone would reset them. So nobody else is let in,
        then it is closed by the loop, while a second descriptor keeps it alive, then emptied, then closed for good.
        """
        waiting: list[socket.socket] = []
        listeners = [_duplicate(listener) for server in self.servers for listener in server.sockets]
        listeners += self._tls_listeners
        await let_last_ones_in(listeners)
        for loop in self._tls_listeners.values():
            loop.stop()
        self._tls_listeners.clear()
        for server in self.servers:
            server.close()
        for listener in listeners:
            listener.setblocking(False)
            with listener, suppress(OSError):  # BlockingIOError: none is left
                while True:
                    waiting.append(listener.accept()[0])
        return waiting


def _duplicate(listener: socket.socket) -> socket.socket:
    """Return another descriptor of the same socket."""
    return socket.socket(fileno=os.dup(listener.fileno()))
