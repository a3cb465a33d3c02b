"""What a connection takes for a request: junk, too much, offers to upgrade, chunks, trailers."""

import asyncio

import pytest

from app.http.parsing import MAX_HEADER_BYTES, MAX_HEADERS, MAX_QUERY_PARAMETERS, MAX_TARGET_BYTES, MAX_UPGRADES
from tests.connections import REQUEST, Port, answer, echo, ended, responding

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_linger")]


@pytest.mark.parametrize("behind", [b"", b" \t"])
@pytest.mark.parametrize(("version", "interim"), [(b"1.1", 1), (b"1.0", 0)])
async def test_only_who_knows_interim_answers_is_told_to_go_on(version, interim, behind):
    protocol, transport = Port(echo).connect()
    head = b"POST / HTTP/%s\r\nhost: x\r\nexpect: 100-continue%s\r\ncontent-length: 5\r\n\r\n" % (version, behind)
    protocol.data_received(head)
    await asyncio.sleep(0)
    protocol.data_received(b"hello")
    await ended(protocol)
    assert transport.sent.count(b"100 Continue") == interim
    assert transport.sent.endswith(b"hello")


async def test_leave_to_go_on_is_given_to_the_request_that_asks_for_it_alone():
    protocol, transport = Port(echo).connect()
    for expect in (b"expect: 100-continue\r\n", b""):
        transport.sent = b""
        protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\n%scontent-length: 5\r\n\r\n" % expect)
        await asyncio.sleep(0)
        protocol.data_received(b"hello")
        await ended(protocol)
        assert transport.sent.startswith(b"HTTP/1.1 100 " if expect else b"HTTP/1.1 200 ")


async def test_a_body_that_is_refused_before_its_request_has_begun_is_given_no_leave_to_come(caplog):
    protocol, transport = Port(echo).connect()
    head = b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ntransfer-encoding: chunked\r\n\r\n"
    protocol.data_received(head + b"no length\r\n")
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 400 ")
    assert not caplog.records


refuse = responding(413, (b"connection", b"close"), body=b"no")


async def test_what_a_refused_client_sends_without_leave_is_thrown_away_for_a_while(monkeypatch):
    monkeypatch.setattr("app.http.answering.DISCARD_S", 0.01)
    protocol, transport = Port(refuse).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 100\r\n\r\n")
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 413 ")
    assert (transport.half_closed, transport.closed.is_set(), protocol.timeout_keep_alive_task) == (True, False, None)
    protocol.data_received(b"x" * 100 + REQUEST)
    assert transport.sent.count(b"HTTP/1.1 ") == 1
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert not transport.aborted


async def test_so_much_of_it_that_it_is_an_attack_is_not(monkeypatch):
    monkeypatch.setattr("app.http.ending.DISCARD_BYTES", 1000)
    protocol, transport = Port(refuse).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 9999\r\n\r\n")
    await ended(protocol)
    protocol.data_received(b"x" * 1000)
    assert not transport.aborted
    protocol.data_received(b"x")
    assert transport.aborted
    protocol.connection_lost(None)


async def target(scope, _receive, send):
    body = scope["path"].encode() + b" " + scope["query_string"]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.mark.parametrize(
    ("asked", "means"),
    [
        (b"http://a", b"/ "),
        (b"http://a?top=3", b"/ top=3"),
        (b"http://a?x=/y", b"/ x=/y"),
        (b"http://a/b", b"/b "),
        (b"http://a/b?x=/y", b"/b x=/y"),
    ],
)
async def test_a_whole_address_without_a_path_means_the_root(asked, means):
    protocol, transport = Port(target).connect()
    protocol.data_received(b"GET %s HTTP/1.1\r\nhost: a\r\n\r\n" % asked)
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")
    assert transport.sent.endswith(b"\r\n\r\n" + means)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(("count", "refused"), [(MAX_HEADERS - 1, False), (MAX_HEADERS + 1, True)])
async def test_too_many_headers_are_refused_also_before_their_end(count, refused, *, whole):
    protocol, transport = Port().connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a:\r\n" * count + (b"\r\n" if whole else b"b"))
    if whole:
        await ended(protocol)
    assert (b"HTTP/1.1 400 " in transport.sent) == refused


NOT_HTTP = {
    "TLS": b"\x16\x03\x01\x02\x00\r\n\r\n",
    "a method that is none": b"BREW / HTTP/1.1\r\nhost: x\r\n\r\n",
    "an endless header": b"GET / HTTP/1.1\r\nx: " + b"x" * 70_000,
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
    "a coding": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
    "a coding behind which a tab stands": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\t\r\n\r\n",
    "a tunnel": b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    "another version": b"GET / HTTP/2.0\r\nhost: x\r\n\r\n",
    "an old version": b"GET / HTTP/0.9\r\nhost: x\r\n\r\n",
    "a target that is none": b"GET :x HTTP/1.1\r\nhost: x\r\n\r\n",
    "an endless target, and no HTTP then": b"GET /" + b"x" * 70_000 + b" HTTP/9\r\n",
    "many upgrades": b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" * 2000,
}


@pytest.mark.parametrize("junk", NOT_HTTP.values(), ids=NOT_HTTP)
async def test_what_is_not_http_gets_400(junk):
    port = Port()
    protocol, transport = port.connect()
    protocol.data_received(junk)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert b"HTTP/1.1 400 " in transport.sent
    assert b"urn:resnet:problem:malformed-request" in transport.sent
    assert protocol._header_timer is None
    assert port.refused == ["malformed-request"]


ALSO_HTTP = {
    "no host in HTTP/1.0": b"GET / HTTP/1.0\r\n\r\n",
    "a coding in capital letters": b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: Chunked\r\n\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", ALSO_HTTP.values(), ids=ALSO_HTTP)
async def test_what_is_unusual_and_http_is_answered(request_bytes):
    protocol, transport = Port().connect()
    protocol.data_received(request_bytes)
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


async def test_empty_lines_before_a_request_are_skipped_and_do_not_prolong_the_headers_time():
    protocol, transport = Port().connect()
    timer = protocol._header_timer
    protocol.data_received(b"\r\n\r\n")
    assert protocol._header_timer is timer
    protocol.data_received(REQUEST)
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")


UPGRADES = {
    "length": b"content-length: 5\r\n\r\nhello",
    "chunks": b"transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
}


OPTIONS = {"first": b"Upgrade, HTTP2-Settings", "last of many": b"x, " * 1000 + b"Upgrade"}


@pytest.mark.parametrize("piece_bytes", [1, 60, 1000])
@pytest.mark.parametrize("body", UPGRADES.values(), ids=UPGRADES)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
async def test_a_body_behind_an_offer_of_another_protocol_is_read(options, body, piece_bytes):
    protocol, transport = Port(echo).connect()
    request = b"POST / HTTP/1.1\r\nhost: x\r\nconnection: %s\r\nupgrade: h2c\r\n%s" % (options, body)
    for _ in range(2):
        transport.sent = b""
        for start in range(0, len(request), piece_bytes):
            protocol.data_received(request[start : start + piece_bytes])
        await ended(protocol)
        assert transport.sent.endswith(b"\r\n\r\nhello")


async def test_nothing_of_an_offer_of_another_protocol_is_passed_on():
    seen = []

    async def look(scope, receive, send):
        seen.extend(scope["headers"])
        await answer(scope, receive, send)

    protocol, _ = Port(look).connect()
    protocol.data_received(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: Upgrade , close\r\nupgrade: h2c\r\n\r\n")
    await ended(protocol)
    assert seen == [(b"host", b"x"), (b"connection", b"close")]


@pytest.mark.parametrize("beyond", [0, 1])
async def test_only_so_many_offers_of_another_protocol_are_taken_at_once(beyond):
    protocol, transport = Port().connect()
    offer = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n"
    protocol.data_received(offer * (MAX_UPGRADES + beyond))
    assert (len(protocol.pipeline) + 1, protocol._refusal is not None) == (MAX_UPGRADES, bool(beyond))
    transport.abort()
    protocol.connection_lost(None)


async def test_a_trailer_that_ends_the_connection_ends_it_also_for_requests_behind():
    """The parser reads nothing more then: who waits for an answer would wait until a timeout."""
    protocol, transport = Port(echo).connect()
    chunked = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n"
    protocol.data_received(chunked + b"connection: close\r\n\r\n")
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert b"connection: close\r\n" in transport.sent
    assert transport.sent.endswith(b"hello")


async def test_a_body_that_breaks_off_ends_its_request_with_400():
    seen = []

    async def read(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            seen.append(message["body"])
        seen.append("gone")
        await answer(scope, receive, send)  # goes nowhere

    port = Port(read)
    protocol, transport = port.connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n")
    await asyncio.sleep(0)
    protocol.data_received(b"no length\r\n")
    await ended(protocol)
    await asyncio.wait_for(transport.closed.wait(), 10)
    assert seen == [b"a", "gone"]
    assert transport.sent.startswith(b"HTTP/1.1 400 ")
    assert transport.sent.count(b"HTTP/1.1 ") == 1


async def test_chunks_that_hold_nothing_end_after_a_while():
    protocol, transport = Port(echo).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    for _ in range(MAX_HEADER_BYTES // 10_000 + 1):
        assert transport.sent == b""
        protocol.data_received(b"x: %s\r\n" % (b"y" * 994) * 10)
    assert transport.sent.startswith(b"HTTP/1.1 400 ")


async def test_what_is_no_content_is_counted_anew_behind_each_part_of_a_request():
    protocol, transport = Port(echo).connect()
    most = b"x" * (MAX_HEADER_BYTES * 2 // 3)
    head = b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\nmore: " + most + b"\r\n\r\n"
    trailer = b"0\r\nmore: " + most
    for data in (head, b"5;" + most, b"\r\nhello\r\n", trailer, b"\r\n\r\n", REQUEST[:-2] + b"more: " + most):
        protocol.data_received(data)
    await ended(protocol)
    protocol.data_received(b"\r\n\r\n")
    await ended(protocol)
    assert [answer[:3] for answer in transport.sent.split(b"HTTP/1.1 ")[1:]] == [b"200", b"200"]


@pytest.mark.parametrize(
    "headers",
    [
        b"x-id:  \t one \t\t \r\ncontent-length: 5 \t\r\n\r\nhello",
        b"x-id:\tone\t\r\ntransfer-encoding: chunked  \r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        b"x-id: one \r\nconnection: upgrade \r\nupgrade: h2c \r\n"
        + UPGRADES["chunks"].replace(b"chunked", b"chunked "),
    ],
    ids=["length", "chunks", "upgrade"],
)
@pytest.mark.parametrize("piece_bytes", [1, 1000])
async def test_blanks_around_a_headers_value_are_no_part_of_it(headers, piece_bytes):
    seen = []

    async def look(scope, receive, send):
        seen.extend(scope["headers"])
        await echo(scope, receive, send)

    protocol, transport = Port(look).connect()
    request = b"POST / HTTP/1.1\r\nhost: x \r\n" + headers
    for begin in range(0, len(request), piece_bytes):
        protocol.data_received(request[begin : begin + piece_bytes])
    await ended(protocol)
    assert transport.sent.endswith(b"\r\n\r\nhello")
    values = dict(seen)
    assert (values[b"host"], values[b"x-id"]) == (b"x", b"one")
    assert values.get(b"transfer-encoding", b"chunked") == b"chunked"
    assert values.get(b"content-length", b"5") == b"5"


async def test_trailers_are_no_headers():
    seen = []

    async def look(scope, receive, send):
        await echo(scope, receive, send)
        seen.extend(scope["headers"])

    protocol, _ = Port(look).connect()
    protocol.data_received(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n")
    protocol.data_received(b"authorization: Bearer x\r\n\r\n")
    await ended(protocol)
    assert seen == [(b"host", b"x"), (b"transfer-encoding", b"chunked")]


async def test_a_header_that_does_not_end_gets_400_with_the_first_byte_too_many():
    protocol, transport = Port().connect()
    protocol.data_received((REQUEST[:-2] + b"x-more: ").ljust(MAX_HEADER_BYTES, b"x"))
    assert transport.sent == b""
    protocol.data_received(b"x")
    assert transport.sent.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("filling", [b"x", b" "])
@pytest.mark.parametrize("piece_bytes", [1 << 30, 50_000, 10_000])
@pytest.mark.parametrize(("header_bytes", "status"), [(MAX_HEADER_BYTES, b"200"), (MAX_HEADER_BYTES + 1, b"400")])
async def test_too_large_a_header_gets_400_however_it_arrives(header_bytes, status, piece_bytes, filling):
    protocol, transport = Port().connect()
    request = REQUEST[:-2] + b"x-more: x"
    request += filling * (header_bytes - len(request) - 4) + b"\r\n\r\n"
    what_follows = bytes(100_000)
    for start in range(0, len(request), piece_bytes):
        protocol.data_received(request[start : start + piece_bytes] + what_follows * (piece_bytes > len(request)))
    while not transport.sent:
        await asyncio.sleep(0)
    assert transport.sent.startswith(b"HTTP/1.1 " + status)


TARGETS = {
    "a path": b"/".ljust(MAX_TARGET_BYTES, b"x"),
    "a query": b"/?".ljust(MAX_TARGET_BYTES, b"x"),
    "an address": b"http://x/?".ljust(MAX_TARGET_BYTES, b"x"),
    "parameters": b"/?" + b"&".join([b"a"] * MAX_QUERY_PARAMETERS),
}
ONE_MORE = {name: target + (b"&" if name == "parameters" else b"x") for name, target in TARGETS.items()}


@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["", "upgrade"])
@pytest.mark.parametrize("piece_bytes", [1 << 30, 1000])
@pytest.mark.parametrize("name", TARGETS)
async def test_too_long_a_target_and_too_many_parameters_get_400(name, piece_bytes, offer):
    for target, status in ((TARGETS[name], b"200"), (ONE_MORE[name], b"400")):
        protocol, transport = Port().connect()
        request = b"GET %s HTTP/1.1\r\nhost: x\r\n%s\r\n" % (target, offer)
        for begin in range(0, len(request), piece_bytes):
            protocol.data_received(request[begin : begin + piece_bytes])
        await ended(protocol)
        assert transport.sent.startswith(b"HTTP/1.1 " + status)


async def seen_of(headers):
    """Send a request with these lines of a header; return what the application sees of them, and the answer."""
    seen = []

    async def look(scope, receive, send):
        seen.extend(scope["headers"])
        await answer(scope, receive, send)

    protocol, transport = Port(look).connect()
    protocol.data_received(REQUEST[:-2] + headers + b"\r\n")
    await ended(protocol)
    return seen, transport.sent


@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["", "upgrade"])
async def test_what_cookies_hold_reaches_no_application(offer):
    seen, sent = await seen_of(offer + b"Cookie: a=1; b=2 \r\nx-id: one\r\ncookie: c\r\n")
    assert sent.startswith(b"HTTP/1.1 200 ")
    assert [value for name, value in seen if name == b"cookie"] == [b"", b""]
    assert dict(seen)[b"x-id"] == b"one"


async def test_of_a_connections_many_options_only_the_first_are_looked_at():
    seen, sent = await seen_of(b"connection: %s\r\nupgrade: h2c\r\n" % OPTIONS["last of many"])
    assert sent.startswith(b"HTTP/1.1 200 ")
    assert seen == [(b"host", b"x"), (b"connection", OPTIONS["last of many"])]


@pytest.mark.parametrize(("more", "status"), [(0, b"200"), (1, b"400")])
async def test_cookies_count_as_the_header_that_they_are(more, status):
    line = b"cookie: "
    line += b";" * (MAX_HEADER_BYTES - len(REQUEST) - len(line) - 2 + more) + b"\r\n"
    assert (await seen_of(line))[1].startswith(b"HTTP/1.1 " + status)
    assert (await seen_of(b"cookie: a\r\n" * (MAX_HEADERS - 1 + more)))[1].startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize("piece_bytes", [1000, 1 << 18])
async def test_a_body_that_nobody_read_is_let_go_with_the_answer(piece_bytes):
    protocol, transport = Port().connect()
    request = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n" + bytes(60_000)
    for begin in range(0, len(request), piece_bytes):
        protocol.data_received(request[begin : begin + piece_bytes])
    assert protocol.cycle.body
    await ended(protocol)
    assert transport.sent.startswith(b"HTTP/1.1 200 ")
    assert not protocol.cycle.body
