"""An HTTP process in front of the engine process, which starts it: python -m app.processes.http INDEX FILES...

The files are those of the socket to the engine process, the port, and the block; standard input has the settings. The
engine process alone obeys signals: a terminal or a supervisor sends them to every process at once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys

from app.main import app_of
from app.processes.block import Block
from app.processes.http_service import HttpService
from app.server import Server, first_port, prepare_process
from app.settings import Settings, SettingsError
from app.telemetry import set_up_logging

log = logging.getLogger(__name__)

# Blocked by the engine process while it starts this one, so that none comes before it is ignored.
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class HttpServer(Server):
    """The first port's server, without signals of its own. It says when the port is open."""

    service: HttpService

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port."""
        await super().startup(sockets)
        self.service.say_serving()


def serve(settings: Settings, index: int, link: int, port: int, block: int) -> int:
    """Serve until the engine process says otherwise, or ends, and return the exit code."""
    service = HttpService(settings, socket.socket(fileno=link), Block(block, settings.http_processes), index)
    server = HttpServer(first_port(app_of(service), service), service)
    service.on_close = server.exit_soon
    prepare_process()
    with socket.socket(fileno=port) as listener:
        server.run(sockets=[listener])
    return service.lifecycle.exit_code


def main() -> None:
    """Take over from the engine process, and serve."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
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
