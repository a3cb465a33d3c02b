"""The engine process' life: it binds the port, starts the HTTP processes, obeys the signals, and ends with all of them.

No process is ever started again: when one ends by itself, all do, with exit code 1, and the orchestrator restarts the
whole. The HTTP processes do not obey signals. They see at their socket when the engine process has ended, however that
came about, so that none is left behind.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import nullcontext
from signal import strsignal

import uvicorn

from app.admin import AdminServer
from app.lifecycle import State
from app.pidfile import pid_file
from app.processes.acceptor import Acceptor
from app.processes.engine_process import EngineProcessService
from app.server_options import create_admin_server, open_main_port, prepare_process
from app.signals import Signals
from app.stacks import dump_stacks

log = logging.getLogger(__name__)

# What an HTTP process takes to end beyond the time for accepted requests, amply.
MARGIN_S = 5.0


def supervise(service: EngineProcessService) -> int:
    """Serve until a signal or a failure ends it, and return the exit code. Raises SettingsError if a port is taken."""
    settings = service.settings
    loop_factory = uvicorn.Config("", log_config=None).get_loop_factory()
    prepare_process()
    listener, admin = open_main_port(settings), create_admin_server(service)
    with pid_file(settings.host, settings.port) as give_up, asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(Supervisor(service, listener, admin, before_port_closes=give_up).run())
    return service.lifecycle.exit_code


class Supervisor:
    """Starts and ends the HTTP processes, which share the port of `listener`, around the life of a service."""

    def __init__(
        self,
        service: EngineProcessService,
        listener: socket.socket,
        admin: AdminServer | None,
        *,
        before_port_closes: Callable[[], None],
    ) -> None:
        self._service = service
        self._listener = listener
        self._admin = admin
        self._end = asyncio.Event()
        self._before_port_closes = before_port_closes

    async def run(self) -> None:
        """Serve until a signal or a failure ends it."""
        service = self._service
        service.lifecycle.on_failure = self._end.set
        service.dump_stacks = self._dump_stacks
        signals = Signals(
            service.lifecycle,
            drain_delay_s=service.settings.drain_delay_s,
            stop=self._end.set,
            reload=service.reload,
            at_once=self._kill,
        )
        with signals.handled():
            async with self._admin.running() if self._admin else nullcontext():
                try:
                    channels = [await process.start(service.settings) for process in service.http_processes]
                    acceptor = Acceptor(self._listener, channels)
                    acceptor.open()
                    await service.start()
                    await self._end.wait()
                    self._before_port_closes()
                    await acceptor.close()
                    await self._finish()
                finally:
                    self._kill()
                    await service.stop()

    async def _finish(self) -> None:
        """Let the HTTP processes finish what they accepted, and wait for their end, not for long after a failure."""
        service, lifecycle = self._service, self._service.lifecycle
        timeout_s = service.settings.drain_timeout_s + MARGIN_S
        codes = await service.close_http_processes(timeout_s, after_failure_s=MARGIN_S)
        expected = {0, lifecycle.exit_code}
        for process, code in zip(service.http_processes, codes, strict=True):
            if process.ended_by_itself or code not in expected:
                reason = f"{process.name} {_end_of(code)}"
                if lifecycle.state is State.FAILED:  # of which the log has the reason, and says no other
                    log.error("%s", reason)
                lifecycle.fail(reason, "an HTTP process did not end as it should")

    def _dump_stacks(self) -> None:
        """Let every process write its stacks: any of them may be the one that hangs."""
        dump_stacks()
        for process in self._service.http_processes:
            process.dump_stacks()

    def _kill(self) -> None:
        for process in self._service.http_processes:
            process.kill()


def _end_of(code: int | None) -> str:
    if code is None:
        return "does not end: it was killed"
    return f"has ended with exit code {code}" if code >= 0 else f"was ended by signal {-code} ({strsignal(-code)})"
