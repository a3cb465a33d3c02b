"""The date that an answer bears (RFC 9110, 6.6.1), for answers that do not go through uvicorn's own sending."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import lru_cache


def date_line() -> bytes:
    """Return the header's line, made once a second: thousands of answers bear the same one."""
    return _line(int(time.time()))


@lru_cache(maxsize=1)
def _line(second: int) -> bytes:
    return b"date: %s\r\n" % formatdate(second, usegmt=True).encode()
