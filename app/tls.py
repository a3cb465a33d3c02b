"""The certificate, looked at before anything else starts, so that a bad one is one line and not a trace."""

from __future__ import annotations

import ssl
from pathlib import Path

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
