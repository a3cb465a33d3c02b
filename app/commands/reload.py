"""`resnet reload`: let a running service load its checkpoint file again; exit 0 when the file's version is served."""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from typing import Any

from app.commands.endings import CommandError
from app.commands.healthcheck import ADDRESS, base_url, get
from app.commands.settings_flags import add_settings, read_settings
from app.pidfile import find_pid

POLL_S = 0.2
ANSWER_S = 10.0


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--pid", type=_process_id, help="process of the service [the one that serves host and port]")
    parser.add_argument("--url", help="base URL of the service [the port of the settings on this host]")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds to wait for the outcome [%(default)s]")
    add_settings(parser, only=ADDRESS)


def _process_id(text: str) -> int:
    """Parse a process id. Raises ValueError below 1: such numbers would signal whole groups."""
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def run(arguments: argparse.Namespace) -> int:
    """Send SIGHUP, wait until /health has the outcome, and print it."""
    url = base_url(arguments)
    settings = read_settings(arguments)
    pid = arguments.pid or _find(settings.host, settings.port)
    verify = bool(arguments.url)
    before = _health(url, verify)
    if before["status"] != "ready":
        raise CommandError(f"not reloaded: {before['reason']}")
    try:
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        raise CommandError(f"process {pid}: {error.strerror}") from None
    until = time.monotonic() + arguments.timeout
    while time.monotonic() < until:
        now = _health(url, verify)
        reload = now["reload"]
        if reload["finished"] > before["reload"]["finished"] and not reload["running"]:
            return _report(reload, before["model"]["version"], now["model"]["version"])
        if now["status"] != "ready":
            raise CommandError(f"not reloaded: {now['reason']}")
        time.sleep(POLL_S)
    raise CommandError(f"no outcome after {arguments.timeout:g} s")


def _find(host: str, port: int) -> int:
    try:
        pid = find_pid(host, port)
    except OSError as error:
        raise CommandError(f"port {port} at {host}: {error.strerror}; give --pid") from None
    if pid is None:
        raise CommandError(f"no service is known to serve port {port} at {host}; give --pid")
    return pid


def _health(url: str, verify: bool) -> dict[str, Any]:
    """Return the answer of /health. Raises CommandError if it is not that of this service."""
    try:
        body = json.loads(get(f"{url}/health", ANSWER_S, verify=verify)[1])
        return {key: body[key] for key in ("status", "reason", "model", "reload")}
    except OSError as error:
        raise CommandError(f"no answer from {url}: {getattr(error, 'reason', error)}") from None
    except (ValueError, KeyError, TypeError):
        raise CommandError(f"{url} does not answer as this service does") from None


def _report(reload: dict[str, Any], old: str, new: str) -> int:
    """Print the checkpoint's outcome and the other files that were refused; return the exit status."""
    outcome, refused = reload["outcome"], reload.get("files_refused", [])
    texts = {
        "succeeded": f"version {new} serves in place of {old}",
        "unchanged": f"version {new} serves already",
    }
    print(texts.get(outcome, f"refused: the service's log says why; version {new} serves on"))
    for file in refused:
        print(f"{file}: refused: the service's log says why; what was read before holds on")
    return int(outcome not in texts or bool(refused))
