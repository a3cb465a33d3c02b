"""uvicorn with an end of our own: it closes its port without a loss, and finishes what it accepted."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.admin import AdminServer
from app.http.accept_loop import AcceptLoop
from app.http.byte_budget import ByteBudget
from app.http.connection_limits import ConnectionLimits, raise_file_limit
from app.http.connections import Connection
from app.http.fast_connections import FastConnection
from app.http.handshakes import MAX_HANDSHAKES, Handshakes
from app.http.ports import drop_new_connections, is_loopback, open_port
from app.main import create_admin_app
from app.memory import give_back_large_blocks
from app.routes.fast_predict import FastPredict
from app.service import Service
from app.settings import Settings

log = logging.getLogger(__name__)

# Once the port is closed, requests that a connection's buffer already holds get this long to be read and begun.
LINGER_S = 0.2
# And who has connected and sent nothing yet gets this long: a client that has a machine's cores for itself is quicker.
NEWCOMERS_S = 1.0
LOOK_AGAIN_S = 0.02
ADMIN_CONNECTIONS = 64
BACKLOG = 2048

# uvloop accepts one connection a turn for each descriptor of a port. With one descriptor a crowd is let in at the pace
# of the turns, tens a second under load, and a probe that comes behind it waited for sixteen seconds.
LISTENERS = 16

# Where no handshake may begin or no file is left, clients wait in the kernel for so long.
REST_S = 0.05

# A forward pass takes the interpreter back some thirty times. Beside an event loop that has always something to do it
# waits for this long each time; Python's 5 ms made a batch of one four times as slow.
SWITCH_INTERVAL_S = 0.0005


class Server(uvicorn.Server):
    """Serves until `exit_soon`, or a failure of the service. Signals are left to whoever runs it."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._handshakes: Handshakes  # once `config` has been loaded
        self._tls_ports: dict[socket.socket, AcceptLoop] = {}
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
        self._handshakes = Handshakes(self._connection, self.config.ssl, *limits_s)
        if self.config.ssl is None:
            await super().startup(sockets)
            if not self.should_exit:
                await self._listen_more()
            return
        await super().startup([])
        if not self.should_exit:
            for port in sockets or ():
                begin = partial(self._begin_handshake, port)
                self._tls_ports[port] = loop = AcceptLoop(port, begin, at_once=LISTENERS, rest_s=lambda: REST_S)
                loop.start()

    def _begin_handshake(self, port: socket.socket) -> bool:
        """Take a connection that waits at a port with TLS, if there is room for its handshake."""
        if self._handshakes.has_room():
            self._handshakes.begin(port.accept()[0])
            return True
        return False

    async def _listen_more(self) -> None:
        """Let the event loop accept LISTENERS connections of a port in each of its turns."""
        for port in [port for server in self.servers for port in server.sockets]:
            for _ in range(LISTENERS - 1):
                again = socket.socket(fileno=os.dup(port.fileno()))
                self.servers.append(
                    await asyncio.get_running_loop().create_server(
                        self._connection, sock=again, backlog=self.config.backlog
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
        for connection in self._close_port():
            self._handshakes.begin(connection)
        await self._handshakes.finish(LINGER_S)  # one may take far longer than a drain has
        await asyncio.sleep(LINGER_S)
        await self._hear_newcomers()
        await super().shutdown(None)

    async def _hear_newcomers(self) -> None:
        """Wait until every connection has begun a request; for a while, since some are only kept ready."""
        for _ in range(round(NEWCOMERS_S / LOOK_AGAIN_S)):
            if all(getattr(one, "heard", True) for one in self.server_state.connections):
                return
            await asyncio.sleep(LOOK_AGAIN_S)

    def _close_port(self) -> list[socket.socket]:
        """Close the port, and return the connections that the kernel had accepted and the event loop not yet.

        Their clients have sent requests, perhaps; closing the port alone would reset them. So it is closed by the loop
        first, while a second descriptor keeps it alive and lets nobody else in, then emptied, then closed for good.
        """
        waiting: list[socket.socket] = []
        ports = [socket.socket(fileno=os.dup(one.fileno())) for server in self.servers for one in server.sockets]
        for port, loop in self._tls_ports.items():
            loop.stop()
            ports.append(port)
        self._tls_ports.clear()
        for port in ports:
            drop_new_connections(port)
        for server in self.servers:
            server.close()
        for port in ports:
            port.setblocking(False)
            with port, suppress(OSError):  # BlockingIOError: none is left
                while True:
                    waiting.append(port.accept()[0])
        return waiting


def prepare_process() -> None:
    """Set what holds for the whole of a process that serves, once everything is imported."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    give_back_large_blocks()
    gc.collect()
    gc.freeze()  # what the imports left; each full collection would look through it again, for a tenth of a second


def open_main_port(settings: Settings) -> socket.socket:
    """Listen on the port that answers requests, and warn if it is open to whoever reaches it. Raises SettingsError."""
    port = open_port(settings.host, settings.port, BACKLOG, "https" if settings.tls_cert else "http")
    if settings.api_key is None and settings.api_keys_file is None and not is_loopback(port):
        log.warning("no key is set, and other hosts may reach this port: whoever does may ask for predictions")
    return port


def allow_connections(settings: Settings) -> int:
    """Return how many connections this process may have, its share; the limit of open files is raised as need be."""
    wanted = settings.connections_per_process
    max_connections = raise_file_limit(wanted, MAX_HANDSHAKES if settings.tls_cert else 0)
    if max_connections < wanted:
        each = f" in each of {settings.http_processes} HTTP processes" if settings.http_processes > 1 else ""
        log.warning("the limit of open files allows for %d connections only%s", max_connections, each)
    return max_connections


def main_server_config(app: FastAPI, service: Service, max_connections: int) -> uvicorn.Config:
    """Return the options of the port that answers requests."""
    settings = service.settings
    return uvicorn.Config(
        app,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        **connection_options(service, max_connections, FastPredict(service)),
    )


def create_admin_server(service: Service) -> AdminServer | None:
    """Return the server of the port for probes and metrics, if the settings want one. Raises SettingsError."""
    settings = service.settings
    if settings.admin_port is None:
        return None
    config = uvicorn.Config(
        create_admin_app(service),
        lifespan="off",
        timeout_graceful_shutdown=1,
        **connection_options(service, ADMIN_CONNECTIONS),
    )
    return AdminServer(config, service, open_port(settings.probes_host, settings.admin_port, BACKLOG))


def connection_options(service: Service, max_connections: int, fast_path: FastPredict | None = None) -> dict[str, Any]:
    """Return the options of uvicorn that both ports have in common."""
    settings = service.settings
    limits = ConnectionLimits(
        header_timeout_s=settings.header_timeout_s,
        unread_timeout_s=settings.keep_alive_s,
        max_connections=max_connections,
        on_refused=service.telemetry.record_refusal,
        unread=ByteBudget(settings.buffered_bytes_per_process),
        max_age_s=settings.connection_age_s or math.inf,
    )
    connection = partial(FastConnection, fast_path=fast_path) if fast_path else Connection
    return {
        "http": partial(connection, limits=limits),
        "ws": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,  # nothing here asks who the client is
        "timeout_keep_alive": settings.keep_alive_s,
        "backlog": BACKLOG,
    }
