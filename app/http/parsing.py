"""Bytes of a connection -> requests: what counts as one, and how much of what has come is parsed.

uvicorn's connection has no limits here: not on headers, nor on requests that wait behind one that is answered.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict, Unpack

import httptools
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

MAX_HEADER_BYTES = 64 << 10  # of a header, or of chunks' lines and trailers; the parser itself has no limits

# Each header costs a hundred bytes besides its own, and servers and browsers send some twenty.
MAX_HEADERS = 256

# The framework takes a target apart before anything is checked, the key included, and needs a microsecond or more for
# each parameter. RFC 9112, 3 asks for 8,000 bytes at least.
MAX_TARGET_BYTES = 8 << 10
MAX_QUERY_PARAMETERS = 64

# A request that waits behind others takes a hundred times the bytes that it came in, so what comes is parsed in pieces,
# and no further while MAX_PIPELINED requests wait.
PIECE_BYTES = 4096
MAX_PIPELINED = 16
# The same for their bodies: each answer that a client takes would let it send another 256 KB behind them.
MAX_WAITING_BODY_BYTES = 64 << 10

# More than one request that offers another protocol in one piece of data is not what any client sends.
MAX_UPGRADES = 8
# What a Connection header names; browsers and proxies name one or two.
MAX_CONNECTION_OPTIONS = 64


def _with_path(target: bytes) -> bytes:
    """Return a request's target with the path that a whole address may lack: "http://a?x" is "http://a/?x"."""
    if target.startswith(b"/") or httptools.parse_url(target).path is not None:
        return target
    address, mark, query = target.partition(b"?")
    return address + b"/" + mark + query


class UvicornOptions(TypedDict):
    """What uvicorn makes a connection from."""

    config: Config
    server_state: ServerState
    app_state: dict[str, Any]


class HoldableFlow(FlowControl):
    """uvicorn's switch of reading, which stays off while bytes are held that were read but not parsed."""

    held = False

    def resume_reading(self) -> None:
        """Resume reading unless unparsed bytes are held."""
        if not self.held:
            super().resume_reading()


class ParsingConnection(HttpToolsProtocol):
    """uvicorn's connection as far as it reads. Subclasses define when it stops, and how a refusal is sent."""

    def __init__(self, **uvicorns: Unpack[UvicornOptions]) -> None:
        super().__init__(**uvicorns)
        self.headers = []
        self._header_begun = False
        self._left_out_bytes = 0  # of a header: blanks behind its values, and cookies
        self._unparsed = b""  # bytes behind as many requests as may wait, or as much of their bodies
        self._overhead_bytes = 0  # of headers, empty lines, chunks' lines and trailers, since anything came of it
        self._came_of_it = False  # whether the last piece of data ended a header or a body, or had a part of a body

    def _stopped_reading(self) -> bool:
        """Whether nothing more is read."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to read."""
        super().connection_made(transport)
        self.flow: HoldableFlow = HoldableFlow(transport)

    def parse(self, data: bytes) -> None:
        """Make requests of bytes."""
        self._came_of_it = False
        self._feed(data)
        self._overhead_bytes = 0 if self._came_of_it else self._overhead_bytes + len(data) - len(self._unparsed)
        if self._overhead_bytes > MAX_HEADER_BYTES and not self._stopped_reading():
            self.send_400_response("")

    def _feed(self, data: bytes) -> None:
        """Give the parser bytes while more requests may wait, and hold the rest."""
        for begin in range(0, len(data), PIECE_BYTES):
            if self._too_much_waits():
                self._unparsed = data[begin:]
                self.flow.pause_reading()
                self.flow.held = True
                return
            self._feed_piece(data[begin : begin + PIECE_BYTES] if len(data) > PIECE_BYTES else data)
            if len(self.headers) > MAX_HEADERS and not self._stopped_reading():
                self.send_400_response("")
            if self._stopped_reading():
                return

    def _too_much_waits(self) -> bool:
        """Whether no more is parsed until a request that is being answered has its answer."""
        if not self.pipeline:
            return False
        if len(self.pipeline) >= MAX_PIPELINED:
            return True
        return sum(len(cycle.body) for cycle, _ in self.pipeline) > MAX_WAITING_BODY_BYTES

    def _parse_on(self) -> None:
        """Parse the bytes held back while too many requests waited. May be scheduled more than once."""
        if self._too_much_waits():
            return
        data, self._unparsed = self._unparsed, b""
        self.flow.held = False
        if data and not self.transport.is_closing():
            self.data_received(data)
            self.flow.resume_reading()

    def _feed_piece(self, data: bytes) -> None:
        try:
            for _ in range(MAX_UPGRADES + 1):
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as upgrade:
                    data = self._without_upgrade() + data[upgrade.args[0] :]
        except httptools.HttpParserError:
            pass
        self.send_400_response("")

    def _without_upgrade(self) -> bytes:
        """Return the header without its offer of another protocol, after which the parser would take no body.

        Java's and curl's clients offer HTTP/2 this way. Raises HttpParserError for CONNECT, which asks for a tunnel.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise httptools.HttpParserError("no tunnels")
        lines = [method + b" " + self.url + b" HTTP/" + self.parser.get_http_version().encode()]
        for name, value in self.headers:
            if name == b"connection":
                tokens = value.split(b",", MAX_CONNECTION_OPTIONS)  # without its Upgrade, an offer behind is none
                kept = [token for token in tokens if token.strip().lower() != b"upgrade"]
                lines.append(name + b": " + b",".join(kept))
            elif name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        return b"\r\n".join([*lines, b"", b""])

    def on_message_begin(self) -> None:
        """Note that a request has begun; its scope is made once its header is complete."""
        self._header_begun = True
        self._left_out_bytes = 0
        self.url, self.headers, self.expect_100_continue = b"", [], False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a line of a header without the blanks behind its value, which the parser leaves (RFC 9110, 5.5).

        Cookies are left out: nothing here reads one, and the framework would take them apart for every request.
        """
        name = name.lower()
        if name == b"cookie":
            self._left_out_bytes += len(value)
            value = b""
        if value.endswith((b" ", b"\t")):
            # The parser knows a coding that spaces follow. With a tab it would refuse the body of what has begun.
            stripped = value.rstrip(b" " if name == b"transfer-encoding" else b" \t")
            self._left_out_bytes += len(value) - len(stripped)
            value = stripped
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Begin a request. An exception here refuses it: httptools turns it into an HttpParserError."""
        self._header_begun, self._came_of_it = False, True
        size = len(b" / HTTP/1.1\r\n\r\n") + len(self.parser.get_method()) + len(self.url) - 1 + self._left_out_bytes
        if len(self.headers) > MAX_HEADERS:
            raise ValueError("too many headers")
        if len(self.url) > MAX_TARGET_BYTES or self.url.count(b"&") >= MAX_QUERY_PARAMETERS:
            raise ValueError("the target is too long, or has too many parameters")
        hosts = 0
        for name, value in self.headers:
            size += len(name) + len(value) + len(b": \r\n")
            hosts += name == b"host"
            if name == b"transfer-encoding" and value.lower() != b"chunked":
                raise ValueError("a coding that nothing here undoes")
        if size > MAX_HEADER_BYTES:
            raise ValueError("the header is too large")
        version = self.parser.get_http_version()
        if version not in {"1.1", "1.0"}:
            raise ValueError("a version that is not spoken here")
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise ValueError("a request of HTTP/1.1 names exactly one host")
        if not self.parser.should_upgrade():  # else it is parsed again: see `_without_upgrade`
            self._begin_request()

    def _begin_request(self) -> None:
        """Begin a request whose header is here."""
        if self.parser.get_http_version() == "1.0":  # which has no interim answers
            self.expect_100_continue = False
        header = _with_path(self.url), self.headers, self.expect_100_continue
        super().on_message_begin()  # it makes a scope, and room for a header
        self.url, self.headers, self.expect_100_continue = header
        self.scope["headers"] = self.headers
        super().on_headers_complete()
        self.headers = []  # trailers may follow, which nothing here reads

    def on_body(self, body: bytes) -> None:
        """Take a part of a request's body."""
        self._came_of_it = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request, unless it is parsed again: see `_without_upgrade`."""
        self._came_of_it = True
        if self.parser.should_upgrade():
            return
        if not self.parser.should_keep_alive():  # a trailer may have ended it: the parser reads nothing more
            self.cycle.keep_alive = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Go on to the next request, and schedule the parsing of what was held back."""
        super().on_response_complete()
        if self._unparsed and not self._too_much_waits():
            self.loop.call_soon(self._parse_on)

    def connection_lost(self, exc: Exception | None) -> None:
        """Drop what was not parsed and not answered."""
        super().connection_lost(exc)
        self._unparsed = b""
        self.pipeline.clear()  # each refers to this connection: a reference cycle
