"""`resnet healthcheck`: exit 0 if a service is ready; for containers, which need no curl for it."""

from __future__ import annotations

import argparse
import urllib.error
import urllib.request

from app.commands.settings_flags import add_settings, read_settings


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--url", help="base URL of the service [the port of the settings on this host]")
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for the answer [%(default)s]")
    add_settings(parser, only={"port"})


def run(arguments: argparse.Namespace) -> int:
    """Ask /readyz once."""
    url = base_url(arguments)
    try:
        status, text = get(f"{url}/readyz", arguments.timeout)
    except OSError as error:
        print(f"no answer from {url}: {getattr(error, 'reason', error)}")
        return 1
    print(text.strip()[:200] if status == 200 else f"{status}: {text.strip()[:200]}")
    return int(status != 200)


def base_url(arguments: argparse.Namespace) -> str:
    """Return the URL given, or that of the settings' port on this host. Raises SystemExit for what is none."""
    url: str = arguments.url or f"http://127.0.0.1:{read_settings(arguments).port}"
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"resnet: error: not an http(s) URL: {url}")
    return url


def get(url: str, timeout_s: float) -> tuple[int, str]:
    """Return status and body, at most 64 KB of it. Raises OSError when nothing answers."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before this host itself
    try:
        answer = direct.open(url, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        return answer.status, answer.read(64 << 10).decode(errors="replace")
