"""uvicorn with signal handling of our own: it drains, where uvicorn would close its port first."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from app.pidfile import pid_file
from app.service import Service
from app.settings import Settings

log = logging.getLogger(__name__)

# Once the port is closed, requests that a connection's buffer already holds get this long to be read and begun.
LINGER_S = 0.2


class Server(uvicorn.Server):
    """SIGTERM or SIGINT: unready, wait, close the port, finish what was accepted, exit 0. A second one: exit now.

    SIGHUP: load the checkpoint file again.
    """

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service
        self._draining: asyncio.Task[None] | None = None
        service.lifecycle.on_failure = self._exit_soon

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install the handlers for the time of serving; overrides uvicorn's."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self.service.reload)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)  # by default it would end the process

    def _on_signal(self, number: signal.Signals) -> None:
        if self._draining is not None:
            log.warning("second signal: stopping at once")
            logging.shutdown()
            os._exit(128 + number)
        log.info("%s: draining", number.name)
        self.service.lifecycle.drain()
        self._draining = asyncio.get_running_loop().create_task(self._drain(), name="drain")

    async def _drain(self) -> None:
        await asyncio.sleep(self.service.settings.drain_delay_s)
        self.should_exit = True

    def _exit_soon(self) -> None:
        self.should_exit = True

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Close the port, give buffered requests a moment to begin, then let uvicorn finish the rest."""
        for server in self.servers:
            server.close()
        await asyncio.sleep(LINGER_S)
        await super().shutdown(None)


def serve(app: FastAPI, settings: Settings) -> int:
    """Serve until a signal or a failure ends it, and return the exit code."""
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        http="h11",  # httptools accepts headers of any size
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=settings.keep_alive_s,
        timeout_graceful_shutdown=math.ceil(settings.drain_timeout_s),
        backlog=2048,
    )
    service: Service = app.state.service
    with pid_file(settings.port):
        Server(config, service).run()
    return service.lifecycle.exit_code
