"""The certificate, looked at before anything else starts, so that a bad one is one line; and the handshake's time."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.settings import SettingsError


def check_certificate(certificate: Path, key: Path) -> None:
    """Raise SettingsError, one line, unless the two PEM files can be read and belong together."""
    for name, path in (("tls_cert", certificate), ("tls_key", key)):
        try:
            path.open("rb").close()
        except OSError as error:
            raise SettingsError(f"{name} {path}: {error.strerror}") from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # A password, so that a key that asks for one is refused instead of waiting for somebody to type it.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or "not a certificate and its key, both PEM, the key not encrypted"
        raise SettingsError(f"tls_cert {certificate} and tls_key {key}: {reason}") from error


@contextmanager
def limited_handshakes(loop: asyncio.AbstractEventLoop, limit_s: float) -> Iterator[None]:
    """Give clients of TLS ports that are opened meanwhile `limit_s` for their handshake.

    uvicorn has no option for it and leaves it at asyncio's 60 s, before which no protocol sees the connection.
    """
    create_server: Callable[..., Coroutine[Any, Any, asyncio.Server]] = loop.create_server

    def create_limited(*args: object, **options: object) -> Coroutine[Any, Any, asyncio.Server]:
        if options.get("ssl") is not None:
            options["ssl_handshake_timeout"] = limit_s
        return create_server(*args, **options)

    loop.create_server = create_limited  # type: ignore[method-assign]
    try:
        yield
    finally:
        loop.create_server = create_server  # type: ignore[method-assign]
