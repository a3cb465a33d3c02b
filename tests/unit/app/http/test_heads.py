"""A header that is known again: exactly the requests that the parser would have read the same way."""

import pytest

from app.http.heads import Head, KnownHead

FIELDS = b"host: x\r\nContent-Type: image/png\r\n"
FIRST = b"POST /predict?top_k=2 HTTP/1.1\r\n" + FIELDS + b"Content-Length: 5\r\naccept: */*\r\n\r\n12345"
PARSED = [(b"host", b"x"), (b"content-type", b"image/png"), (b"content-length", b"5"), (b"accept", b"*/*")]


def known(request=FIRST, headers=PARSED):
    return KnownHead.of(request, Head(headers, b"top_k=2"))


@pytest.mark.parametrize("body", [b"abcde", b"", b"x" * 12_345, b"\r\n\r\n", b"content-length: 9\r\n\r\n"])
def test_another_body_of_any_length_is_found(body):
    request = FIRST.replace(b"Length: 5", b"Length: %d" % len(body)).removesuffix(b"12345") + body
    assert known().match(request) == (len(body), body)


OTHERS = {
    "another path": FIRST.replace(b"/predict", b"/redpict"),
    "another query": FIRST.replace(b"top_k=2", b"top_k=3"),
    "another method": FIRST.replace(b"POST", b"PUTS"),
    "another value before the length": FIRST.replace(b"image/png", b"image/gif"),
    "another value behind the length": FIRST.replace(b"*/*", b"*/x"),
    "another spelling": FIRST.replace(b"Content-Type", b"content-type"),
    "another field": FIRST.replace(b"accept", b"expect: 100-continue\r\naccept"),
    "a second length": FIRST.replace(b"accept", b"content-length: 5\r\naccept"),
    "chunks": FIRST.replace(b"accept", b"transfer-encoding: chunked\r\naccept"),
    "HTTP/1.0": FIRST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "no end of the header": FIRST.replace(b"\r\n\r\n", b"\r\n"),
    "a part of the header": FIRST[:60],
    "an empty line before it": b"\r\n" + FIRST,
    "no length": FIRST.replace(b"Length: 5", b"Length: "),
    "a length that is no number": FIRST.replace(b"Length: 5", b"Length: a"),
    "a negative length": FIRST.replace(b"Length: 5", b"Length: -5"),
    "a signed length": FIRST.replace(b"Length: 5", b"Length: +5"),
    "a hexadecimal length": FIRST.replace(b"Length: 5", b"Length: 0x5"),
    "a length with an underscore": FIRST.replace(b"Length: 5", b"Length: 0_5"),
    "a length of other digits": FIRST.replace(b"Length: 5", "Length: \u0665".encode()),
    "a space behind the length": FIRST.replace(b"Length: 5", b"Length: 5 "),
    "too large a length": FIRST.replace(b"Length: 5", b"Length: 000000005"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_in_anything_else_is_not_known(name):
    assert known().match(OTHERS[name]) is None


@pytest.mark.parametrize("behind", [b"", b"1234", b"12345P", b"12345" + FIRST])
def test_what_is_behind_the_header_is_told_with_the_length_that_it_has_to_have(behind):
    assert known().match(FIRST.removesuffix(b"12345") + behind) == (5, behind)


UNUSUAL = {
    "an empty line before it": b"\r\n" + FIRST,
    "another request behind it": FIRST + b"GET",
    "another method": FIRST.replace(b"POST", b"PUTS"),
    "HTTP/1.0": FIRST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "lines that end otherwise": FIRST.replace(b"\r\n", b"\n"),
    "one line that ends otherwise": FIRST.replace(b"Length: 5\r\n", b"Length: 5\n"),
    "a body that looks like the header's end": FIRST.replace(b"\r\n\r\n12345", b"\n\n1\r\n\r\n"),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_an_unusual_request_is_not_remembered(name):
    assert known(UNUSUAL[name]) is None


def test_a_length_within_another_fields_value_is_not_taken_for_the_length():
    decoy = FIRST.replace(b"host: x", b"host: x\r\nx-note: content-length: 7")
    one = known(decoy, [*PARSED, (b"x-note", b"content-length: 7")])
    assert one.match(decoy.replace(b"h: 5\r", b"h: 2\r").replace(b"12345", b"ab")) == (2, b"ab")
    assert one.match(decoy.replace(b"length: 7", b"length: 5")) is None


def test_a_header_says_what_requests_are_judged_by():
    twice = [(b"x-request-id", b"first"), (b"x-request-id", b"second"), (b"authorization", b"Bearer \xe4")]
    head = Head(twice, b"top_k=7")
    assert (head.given_id, head.key, head.content_type) == (b"first", "Bearer ä", "")
    assert head.parameters.top_k == 7
    assert Head([(b"x-timeout-ms", b"soon")], b"").parameters.bad == ("x-timeout-ms",)
