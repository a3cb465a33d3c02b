"""An HTTP process in front of the engine process, which starts it: python -m app.processes.http_process INDEX FILES...

The files are the socket to the engine process, the one that connections come through, and the shared memory; standard
input has the settings. The engine process alone obeys signals: a terminal or a supervisor sends them to every process
at once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from app.http.accept_loop import AcceptLoop
from app.logs import set_up_logging
from app.main import create_app
from app.processes.acceptor import AT_ONCE, MARK
from app.processes.http_service import HttpService
from app.processes.shared_state import SharedState
from app.server import Server
from app.server_options import allow_connections, main_server_config, prepare_process
from app.settings import Settings, SettingsError
from app.stacks import report_crashes

log = logging.getLogger("app.processes.http_process")  # run as a module, it is called __main__

# Blocked by the engine process while it starts this one, so that none comes before it is ignored.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HttpServer(Server):
    """Serves the connections that come through `channel`. It has no port, and no signals, of its own."""

    service: HttpService

    def __init__(self, config: uvicorn.Config, service: HttpService, channel: socket.socket) -> None:
        super().__init__(config, service)
        self._channel = channel
        self._arrived = 0
        self._loop = AcceptLoop(channel, self._take_one, at_once=AT_ONCE)
        service.on_close = self.exit_soon
        service.on_beat = self._count

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to take connections, and say so."""
        await super().startup(sockets)
        self._loop.start()
        self.service.say_serving()

    def _take_one(self) -> bool:
        """Take a connection from the engine process, if there is room. Raises BlockingIOError when none is left."""
        if not self._connection_setup.has_room():
            return False
        connection = next(self._arrivals(1), None)
        if connection is None:
            raise BlockingIOError
        self._connection_setup.begin(connection)
        self._count()
        return True

    def _count(self) -> None:
        self.service.count_connections(len(self.server_state.connections) + len(self._connection_setup), self._arrived)

    def _arrivals(self, most: float) -> Iterator[socket.socket]:
        """Yield the connections that are here, at most `most`."""
        while most > 0:
            try:
                mark, files, _, _ = socket.recv_fds(self._channel, len(MARK), 1)
            except BlockingIOError:
                return
            if not mark:
                self._loop.stop()
                return
            self._arrived += 1
            most -= 1
            yield from (socket.socket(fileno=file) for file in files)

    async def _close_port(self) -> list[socket.socket]:
        """Return the connections that were handed over before the port was closed, and not taken yet."""
        self._loop.stop()
        return list(self._arrivals(math.inf))


def serve(settings: Settings, index: int, link: int, channel: int, shared: int) -> int:
    """Serve until the engine process says otherwise, or ends, and return the exit code."""
    service = HttpService(settings, socket.socket(fileno=link), SharedState(shared, settings.http_processes), index)
    config = main_server_config(create_app(service), service, allow_connections(settings))
    server = HttpServer(config, service, socket.socket(fileno=channel))
    prepare_process()
    server.run(sockets=[])
    return service.lifecycle.exit_code


def main() -> None:
    """Take over from the engine process, and serve."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    report_crashes()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, IGNORED)
    settings = Settings(**json.load(sys.stdin))
    set_up_logging(settings.log_level, settings.log_format)
    try:
        code = serve(settings, *map(int, sys.argv[1:]))
    except SettingsError as error:
        log.error("%s", error)
        code = 1
    logging.shutdown()
    os._exit(code)  # as `resnet serve`: a thread may be stuck in a picture


if __name__ == "__main__":
    main()
