"""`resnet healthcheck`: exit 0 if a service is ready; for containers, which need no curl for it."""

from __future__ import annotations

import argparse
import http.client
import socket
import ssl
import urllib.error
import urllib.request

from app.commands.endings import CommandError
from app.commands.settings_flags import add_settings, read_settings
from app.pidfile import EVERYWHERE

# The settings that say where a service answers.
ADDRESS = ("host", "port", "admin_host", "admin_port", "tls_cert", "tls_key")


def add(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "--url", help="base URL of the service [the port of the settings that has the probes, on this host]"
    )
    parser.add_argument("--timeout", type=float, default=3.0, help="seconds to wait for the answer [%(default)s]")
    add_settings(parser, only=ADDRESS)


def run(arguments: argparse.Namespace) -> int:
    """Ask /readyz once."""
    url = base_url(arguments)
    try:
        status, text = get(f"{url}/readyz", arguments.timeout, verify=bool(arguments.url))
    except OSError as error:
        print(f"no answer from {url}: {getattr(error, 'reason', error)}")
        return 1
    print(text.strip()[:200] if status == 200 else f"{status}: {text.strip()[:200]}")
    return int(status != 200)


def base_url(arguments: argparse.Namespace) -> str:
    """Return --url, or the address at which the service of the settings answers probes.

    The probes' own port never speaks TLS. Raises CommandError for what is no URL.
    """
    settings = read_settings(arguments)
    host = settings.probes_host
    if host in EVERYWHERE:
        host = "::1" if host == "::" and has_ipv6_loopback() else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    scheme = "https" if settings.tls_cert and settings.admin_port is None else "http"
    url: str = arguments.url or f"{scheme}://{host}:{settings.admin_port or settings.port}"
    if not url.startswith(("http://", "https://")):
        raise CommandError(f"not an http(s) URL: {url}")
    return url


def has_ipv6_loopback() -> bool:
    """Return whether there is ::1. Where sysctl has switched IPv6 off, a service at "::" is reached by IPv4 alone."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def get(url: str, timeout_s: float, *, verify: bool) -> tuple[int, str]:
    """Return the status and at most 64 KiB of the body. Raises OSError without an answer that is HTTP.

    On the way to this host itself a certificate need not be verified: it names another host, and no one listens in.
    """
    context = ssl.create_default_context()
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    no_proxy = urllib.request.ProxyHandler({})  # none stands before this host itself
    direct = urllib.request.build_opener(no_proxy, urllib.request.HTTPSHandler(context=context))
    try:
        try:
            answer = direct.open(url, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            answer = error
        with answer:
            return answer.status, answer.read(64 << 10).decode(errors="replace")
    except (http.client.HTTPException, ValueError) as error:  # ValueError is for what is no address
        raise ConnectionError(f"{type(error).__name__} {str(error)[:100]!r}") from error
