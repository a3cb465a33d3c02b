"""`resnet healthcheck`: exit 0 if a service is ready; for containers, which need no curl for it."""

from __future__ import annotations

import argparse
import ssl
import urllib.error
import urllib.request

from app.commands.settings_flags import add_settings, read_settings
from app.settings import Settings


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--url", help="base URL of the service [the port of the settings that has the probes, on this host]"
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for the answer [%(default)s]")
    add_settings(parser, only={"port", "admin_port", "tls_cert", "tls_key"})


def run(arguments: argparse.Namespace) -> int:
    """Ask /readyz once."""
    url = arguments.url or _own_url(read_settings(arguments))
    if not url.startswith(("http://", "https://")):
        raise SystemExit(f"resnet: error: not an http(s) URL: {url}")
    context = ssl.create_default_context()
    if not arguments.url:
        # The certificate names the public host, not 127.0.0.1, and on the way to this host itself nobody listens in.
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    no_proxy = urllib.request.ProxyHandler({})  # none stands before this host itself
    direct = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=context))
    try:
        with direct.open(f"{url}/readyz", timeout=arguments.timeout) as answer:
            print(answer.read(200).decode().strip())
            return 0
    except urllib.error.HTTPError as error:
        print(f"{error.code}: {error.read(200).decode(errors='replace').strip()}")
    except OSError as error:
        print(f"no answer from {url}: {getattr(error, 'reason', error)}")
    return 1


def _own_url(settings: Settings) -> str:
    """Return where the service of these settings answers probes; their own port never speaks TLS."""
    if settings.admin_port is not None:
        return f"http://127.0.0.1:{settings.admin_port}"
    return f"{'https' if settings.tls_cert else 'http'}://127.0.0.1:{settings.port}"
