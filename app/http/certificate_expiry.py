"""When a certificate ends. The standard library reports it of authorities' certificates only, or after a handshake."""

from __future__ import annotations

import base64
import re
from datetime import UTC, datetime

# What OpenSSL takes for a certificate in a PEM file; text and other things may stand around it.
PEM = re.compile(rb"-----BEGIN (?:X509 |TRUSTED )?CERTIFICATE-----(.*?)-----END", re.DOTALL)

# Tags of DER (X.690), and the place of the validity in a TBSCertificate (RFC 5280, 4.1).
SEQUENCE, VERSION, UTC_TIME, GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18
FIELDS_BEFORE_VALIDITY = 3  # serial number, signature algorithm, issuer


def expiry_of(pem: bytes) -> float:
    """Return when the first certificate of a PEM file ends, as a Unix time. Raises ValueError if that cannot be read.

    The first one is the server's own; those of authorities follow it.
    """
    found = PEM.search(pem)
    if found is None:
        raise ValueError("no certificate")
    try:
        return _expiry_of_der(base64.b64decode(found[1]))
    except IndexError:
        raise ValueError("the certificate is cut off") from None


def _expiry_of_der(der: bytes) -> float:
    certificate, _ = _contents(der, SEQUENCE)
    fields, _ = _contents(certificate, SEQUENCE)
    if fields[0] == VERSION:  # left out in the first one
        _, fields = _contents(fields, VERSION)
    for _ in range(FIELDS_BEFORE_VALIDITY):
        _, fields = _contents(fields, fields[0])
    validity, _ = _contents(fields, SEQUENCE)
    _, rest = _contents(validity, validity[0])
    kind = rest[0]
    text, _ = _contents(rest, kind)
    return _time(kind, text.decode("ascii"))


def _contents(der: bytes, tag: int) -> tuple[bytes, bytes]:
    """Return what the first element holds, and what follows it. Raises ValueError if its tag is another one."""
    if der[0] != tag:
        raise ValueError(f"tag {der[0]:#x} in place of {tag:#x}")
    begin, length = 2, der[1]
    if length > 0x7F:  # the number of bytes that the length itself takes
        begin += length & 0x7F
        length = int.from_bytes(der[2:begin], "big")
    if begin + length > len(der):
        raise IndexError
    return der[begin : begin + length], der[begin + length :]


def _time(kind: int, text: str) -> float:
    """Return a Unix time; RFC 5280 allows for two forms, both in UTC and to the second."""
    if kind == UTC_TIME:
        text = ("19" if text[:2] >= "50" else "20") + text
    elif kind != GENERALIZED_TIME:
        raise ValueError(f"tag {kind:#x} in place of a time")
    return datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()
