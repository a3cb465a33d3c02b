"""What a request is called in answers and logs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from random import getrandbits

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")

# W3C Trace Context: version, the trace's id, the caller's span, flags; later versions may add to it.
TRACE_PARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?")


def given_id_in(fields: Mapping[bytes, bytes]) -> bytes:
    """Return what the caller calls its request, b"" for nothing: x-request-id, else the id of traceparent's trace.

    `fields` are a header's, by lower-case name.
    """
    given = fields.get(b"x-request-id", b"")
    if not given and (trace_parent := fields.get(b"traceparent")) and (found := TRACE_PARENT.fullmatch(trace_parent)):
        return found[1]
    return given


def request_id_of(given: bytes) -> str:
    """Return what the caller gave if it is sane, else a new id."""
    if not given:
        return new_request_id()
    text = given.decode("latin-1")
    return text if SANE_REQUEST_ID.fullmatch(text) else new_request_id()


def new_request_id() -> str:
    """Return 128 random bits in hexadecimal digits. They tell requests apart and are no secret."""
    return f"{getrandbits(128):032x}"
