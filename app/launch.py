"""Creates a service from its settings and serves it: in this process alone, or in several (app/processes)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from socket import socket

import uvicorn

from app.admin import AdminServer
from app.engine import load_engine
from app.engine_service import EngineFactory, EngineService
from app.main import create_app
from app.pidfile import pid_file
from app.processes.engine_process import EngineProcessService
from app.processes.supervisor import supervise
from app.server import Server
from app.server_options import (
    allow_connections,
    create_admin_server,
    main_server_config,
    open_main_port,
    prepare_process,
)
from app.settings import Settings
from app.signals import Signals


def create_service(settings: Settings, engine_factory: EngineFactory = load_engine) -> EngineService:
    """Return the service of a process with an engine, which is loaded when it starts, by `engine_factory`.

    Raises SettingsError if a file that the settings name cannot be used.
    """
    kind = EngineProcessService if settings.http_processes > 1 else EngineService
    return kind(settings, engine_factory)


def serve(service: EngineService) -> int:
    """Serve until a signal or a failure ends it, and return the exit code. Raises SettingsError if a port is taken."""
    if isinstance(service, EngineProcessService):
        return supervise(service)
    settings = service.settings
    prepare_process()
    listener, admin = open_main_port(settings), create_admin_server(service)
    config = main_server_config(create_app(service), service, allow_connections(settings))
    with pid_file(settings.host, settings.port) as give_up:
        StandaloneServer(config, service, admin, before_port_closes=give_up).run([listener])
    return service.lifecycle.exit_code


class StandaloneServer(Server):
    """The server of a process that does everything: it obeys signals, and has the port for probes beside its own."""

    def __init__(
        self,
        config: uvicorn.Config,
        service: EngineService,
        admin: AdminServer | None,
        *,
        before_port_closes: Callable[[], None],
    ) -> None:
        super().__init__(config, service)
        self._admin = admin
        self._before_port_closes = before_port_closes
        self._signals = Signals(
            service.lifecycle,
            drain_delay_s=service.settings.drain_delay_s,
            stop=self.exit_soon,
            reload=service.reload,
        )

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install our handlers for the time of serving; overrides uvicorn's."""
        with self._signals.handled():
            yield

    async def serve(self, sockets: list[socket] | None = None) -> None:
        """Serve; the second port, if there is one, is there all the while."""
        async with self._admin.running() if self._admin else nullcontext():
            await super().serve(sockets)

    async def shutdown(self, sockets: list[object] | None = None) -> None:  # type: ignore[override]
        """Remove the pid file, then shut down."""
        self._before_port_closes()
        await super().shutdown(sockets)
