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
    url = arguments.url or f"http://127.0.0.1:{read_settings(arguments).port}"
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"resnet: error: not an http(s) URL: {url}")
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy stands before this host itself
    try:
        with direct.open(f"{url}/readyz", timeout=arguments.timeout) as answer:
            print(answer.read(200).decode().strip())
            return 0
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(200).decode(errors='replace').strip()}")
    except OSError as error:
        print(f"no answer from {url}: {getattr(error, 'reason', error)}")
    return 1
