"""What log lines look like, and which loggers' lines there are."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

# What lines about a request give as `extra`.
FIELDS = ("request_id", "route", "status", "seconds")


class JsonFormatter(logging.Formatter):
    """One JSON object a line; what a line says of a request are members of their own, too: FIELDS."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON: time, level, logger, message, FIELDS, and the trace of an exception."""
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def set_up_logging(level: str, log_format: str) -> None:
    """Send every logger's lines to standard error in one form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        JsonFormatter()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx", "httpcore", "PIL", "matplotlib", "asyncio"):
        logging.getLogger(noisy).setLevel(max(logging.INFO, root.level) if noisy == "asyncio" else logging.WARNING)
