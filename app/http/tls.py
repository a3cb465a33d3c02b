"""The certificate, read first of all, so that a bad one is reported in one line, and again on SIGHUP."""

from __future__ import annotations

import logging
import math
import ssl
import time
from datetime import UTC, datetime
from pathlib import Path

from app.http.certificate_expiry import expiry_of
from app.settings import SettingsError

log = logging.getLogger(__name__)

# Renewals come weeks before the end, by default: one that is so near has been missed.
NEAR_END_S = 7 * 86_400


class Certificate:
    """The certificate that handshakes get: the newest one that could be read. Raises SettingsError if none can be.

    `expires_at` is when it ends, a Unix time; NaN if that is unknown.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._newest = read_certificate(chain, key)
        self.expires_at = _expiry_of_file(chain)

    def reload(self) -> bool:
        """Read the files again and log what came of it; files that cannot be used leave the certificate as it is."""
        try:
            self._newest = read_certificate(self._chain, self._key)
            self.expires_at = _expiry_of_file(self._chain)
        except SettingsError as error:
            log.error("the certificate stays as it was: %s", error)
            return False
        log.info("read the certificate %s", self._chain)
        return True

    def warn_of_expiry(self) -> None:
        """Log a warning if it has expired or is about to: clients refuse it, and here nothing else would show it."""
        left_s = self.expires_at - time.time()
        if left_s < NEAR_END_S:  # not of NaN
            end = datetime.fromtimestamp(self.expires_at, UTC)
            log.warning("the certificate %s %s %s", self._chain, "ends on" if left_s > 0 else "ended on", end)

    def listen_with(self, context: ssl.SSLContext) -> None:
        """Let new handshakes of a listening context, also those that name no server, get the newest certificate.

        Reading into the listening context itself would leave it without a usable key where one of the files is replaced
        between being checked and being read again.
        """

        def choose(connection: ssl.SSLObject, _server_name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._newest

        context.sni_callback = choose


def _expiry_of_file(chain: Path) -> float:
    try:
        return expiry_of(chain.read_bytes())
    except (OSError, ValueError) as error:
        log.warning("when the certificate %s ends cannot be told: %s", chain, error)
        return math.nan


def read_certificate(certificate: Path, key: Path) -> ssl.SSLContext:
    """Read two PEM files. Raises SettingsError, one line, unless they can be read and belong together."""
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
    return context
