"""What a process that serves is set to: its ports, its limits, and the options of uvicorn."""

from __future__ import annotations

import gc
import logging
import math
import socket
import sys
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from app.admin import AdminServer
from app.http.byte_budget import ByteBudget
from app.http.connection_limits import ConnectionLimits, raise_file_limit
from app.http.connection_setup import MAX_HANDSHAKES
from app.http.connections import Connection
from app.http.fast_connections import FastConnection
from app.http.ports import is_loopback, open_port
from app.main import create_admin_app
from app.memory import give_back_large_blocks
from app.routes.fast_predict import FastPredict
from app.service import Service
from app.settings import Settings

log = logging.getLogger(__name__)

ADMIN_CONNECTIONS = 64
BACKLOG = 2048

# A forward pass takes the interpreter back some thirty times. Beside an event loop that has always something to do it
# waits for this long each time; Python's 5 ms made a batch of one four times as slow.
SWITCH_INTERVAL_S = 0.0005


def prepare_process() -> None:
    """Set thread switches, malloc and garbage collection for a process that serves, once everything is imported."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    give_back_large_blocks()
    gc.collect()
    gc.freeze()  # what the imports left; each full collection would look through it again, for a tenth of a second


def open_main_port(settings: Settings) -> socket.socket:
    """Listen on the port that answers requests, and warn if others may use it without a key. Raises SettingsError."""
    listener = open_port(settings.host, settings.port, BACKLOG, "https" if settings.tls_cert else "http")
    if settings.api_key is None and settings.api_keys_file is None and not is_loopback(listener):
        log.warning("no key is set, and other hosts may reach this port: whoever does may ask for predictions")
    return listener


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
