"""Our service: as `resnet serve` starts it, but for the engine."""

import os

from app.main import create_app
from app.server import serve
from app.settings import Settings
from app.telemetry import set_up_logging
from benchmarks.peers.engine import load, port

if __name__ == "__main__":
    settings = Settings(port=port())
    set_up_logging(settings.log_level, settings.log_format)
    os._exit(serve(create_app(settings, load), settings))
