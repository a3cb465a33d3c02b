"""A connection over a transport that only notes what is done to it."""

import asyncio
import math
from functools import partial

import uvicorn
from uvicorn.server import ServerState

from app.errors import QueueFull
from app.http.answering import CONNECTION
from app.http.byte_budget import ByteBudget
from app.http.connection_limits import ConnectionLimits
from app.http.connections import Connection

REQUEST = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
HALF = b"GET / HTTP/1.1\r\nho"


class Transport:
    def __init__(self):
        self.sent = b""
        self.unread = 0
        self.aborted = False
        self.half_closed = False
        self.closed = asyncio.Event()

    def get_extra_info(self, _name, default=None):
        return default

    def is_closing(self):
        return self.closed.is_set()

    def write(self, data):
        if self.half_closed:
            raise RuntimeError("Cannot call write() after write_eof()")
        self.sent += data

    def get_write_buffer_size(self):
        return self.unread

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.half_closed = True

    def close(self):
        self.closed.set()

    def abort(self):
        self.aborted = True
        self.closed.set()

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass


async def answer(_scope, _receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def responding(status=200, *headers, body=b""):
    """An application that answers at once, by the connection's own way, or with 429 if there is no room for that."""

    async def respond(scope, _receive, _send):
        connection = scope["extensions"][CONNECTION]
        length = (b"content-length", b"%d" % len(body))
        try:
            await connection.respond(status, [length, *headers], body)
        except QueueFull:
            await connection.respond(429, [(b"content-length", b"0")], b"")

    return respond


class Port:
    """What uvicorn has for one port."""

    def __init__(
        self, app=answer, header_timeout_s=60.0, unread_timeout_s=60.0, max_connections=10, max_age_s=math.inf
    ):
        self.refused = []
        self.unread = ByteBudget(100)
        limits = ConnectionLimits(
            header_timeout_s, unread_timeout_s, max_connections, self.refused.append, self.unread, max_age_s
        )
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits=limits),
            ws="none",
            log_config=None,
        )
        config.load()
        self.make = partial(config.http_protocol_class, config=config, server_state=ServerState(), app_state={})

    def connect(self):
        protocol, transport = self.make(), Transport()
        protocol.connection_made(transport)
        return protocol, transport


async def ended(protocol):
    await asyncio.gather(*protocol.tasks)


async def echo(_scope, receive, send):
    body = b""
    while (message := await receive())["type"] == "http.request":
        body += message["body"]
        if not message["more_body"]:
            break
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
