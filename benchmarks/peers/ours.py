"""Our service: as `resnet serve` starts it, but for the engine."""

import os

from app.launch import create_service, serve
from app.logs import set_up_logging
from app.settings import Settings
from benchmarks.peers.engine import load, port


def run(settings: Settings) -> None:
    """Serve until a signal ends it."""
    set_up_logging(settings.log_level, settings.log_format)
    os._exit(serve(create_service(settings, load)))


if __name__ == "__main__":
    run(Settings(port=port()))
