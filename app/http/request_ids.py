"""What a request is called in answers and logs."""

from __future__ import annotations

import re
from random import getrandbits

SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


def request_id_of(given: bytes) -> str:
    """Return the caller's x-request-id if it is sane, else a new one."""
    if not given:
        return new_request_id()
    text = given.decode("latin-1")
    return text if SANE_REQUEST_ID.fullmatch(text) else new_request_id()


def new_request_id() -> str:
    """Return 128 random bits in hexadecimal digits. They tell requests apart and are no secret."""
    return f"{getrandbits(128):032x}"
