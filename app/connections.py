"""One client's connection. What uvicorn would keep open for ever ends here: silence, half a header, an unread answer.

The body's time is kept by `read_body`, the time between two requests by uvicorn's own keep-alive timer.
"""

from __future__ import annotations

import asyncio
import json
import re
import resource
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from app.errors import HeaderTooSlow, MalformedRequest, ServiceError

# Open files that are not connections: the port, the event loop, libraries, /proc for the metrics, probes on their port.
OTHER_FILES = 128
LATE_S = 0.05

# h11 refuses a larger header only if a part of it is still missing, so that the network would decide.
MAX_HEADER_BYTES = 64 << 10
HEADER_END = re.compile(rb"\n\r?\n")

# A refused client may still be sending. Closing at once would reset the connection, and take the answer with it.
LINGER_S = 1.0
TOO_MANY_CONNECTIONS = "too-many-connections"


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What the connections of one port may take; `refused` is told the reason of each refusal."""

    header_timeout_s: float
    unread_timeout_s: float
    max_connections: int
    refused: Callable[[str], None]


class Connection(H11Protocol):
    """uvicorn's connection with a time limit on headers and unread answers, and a limit on how many there are.

    The header's time runs from the opening of the connection, or from the first byte after an answer, to the header's
    end: a byte now and then does not prolong it.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: ConnectionLimits,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._header_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._linger_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first header, unless there are too many connections already."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._limits.refused(TOO_MANY_CONNECTIONS)
            transport.abort()
            return
        self._watch_header()

    def data_received(self, data: bytes) -> None:
        """Take bytes of a header or a body; those that follow a refusal are thrown away."""
        if self._linger_timer is not None:
            return
        if self._header_too_large(data):
            self._unset_keepalive_if_required()
            self.send_400_response("")
        else:
            super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        """Go on to the next request; a part of its header may be here already."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._unset_keepalive_if_required()
        self._watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """The end."""
        self._cancel_timers()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not read its answer; it has a while to begin."""
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        """The client has read."""
        super().resume_writing()
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, even if its client never takes the rest of its last answer."""
        super().timeout_keep_alive_handler()
        self._abort_later()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; overrides uvicorn's plain text."""
        self._refuse(MalformedRequest("This is not an HTTP request that can be read, or its header is too large."))

    def _header_too_large(self, data: bytes) -> bool:
        if self.conn.their_state is not h11.IDLE:
            return False
        begun = self.conn.trailing_data[0]
        too_long = len(begun) + len(data) > MAX_HEADER_BYTES
        return too_long and HEADER_END.search(begun + data, 0, MAX_HEADER_BYTES) is None

    def _watch_header(self) -> None:
        """Let the header's time run exactly while a header is awaited and the keep-alive timer does not run."""
        refused = self._linger_timer is not None or self.transport.is_closing()
        if refused or self.conn.their_state is not h11.IDLE or self.timeout_keep_alive_task is not None:
            if self._header_timer is not None:
                self._header_timer.cancel()
                self._header_timer = None
        elif self._header_timer is None:
            self._header_timer = self.loop.call_later(self._limits.header_timeout_s, self._header_late)

    def _header_late(self) -> None:
        # If this very process was slow, the header may lie unread in the socket: one more turn of the loop reads it.
        self._header_timer = self.loop.call_later(LATE_S, self._close_late)

    def _close_late(self) -> None:
        self._header_timer = None
        if self.transport.is_closing():
            return
        if self.conn.trailing_data[0]:
            self._refuse(HeaderTooSlow())
        else:
            self.transport.close()

    def _refuse(self, error: ServiceError) -> None:
        """Answer with a problem, if an answer may still begin, and close."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            self._limits.refused(error.code)
            request_id = uuid.uuid4().hex
            body = json.dumps(error.problem() | {"request_id": request_id}).encode()
            headers = [
                ("content-type", "application/problem+json"),
                ("content-length", str(len(body))),
                ("x-request-id", request_id),
                ("x-content-type-options", "nosniff"),
                ("connection", "close"),
            ]
            start = h11.Response(status_code=error.status, headers=headers, reason=STATUS_PHRASES[error.status])
            events = (start, h11.Data(data=body), h11.EndOfMessage())
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
            if self.transport.can_write_eof():  # TLS cannot
                self.transport.write_eof()
                self._linger_timer = self.loop.call_later(LINGER_S, self.transport.close)
                self._abort_later()
                return
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        if self._unread_timer is None:
            self._unread_timer = self.loop.call_later(self._limits.unread_timeout_s, self.transport.abort)

    def _cancel_timers(self) -> None:
        for timer in (self._header_timer, self._unread_timer, self._linger_timer):
            if timer is not None:
                timer.cancel()


def connections_within_files(wanted: int) -> int:
    """Return how many connections may be open, at most `wanted`, raising the process's limit of open files if need be.

    Without a file left for it the service could neither accept nor read its own metrics.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + OTHER_FILES
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(wanted, soft - OTHER_FILES))
