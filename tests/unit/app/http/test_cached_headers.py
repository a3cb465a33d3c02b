"""A cached header matches exactly the requests that the parser would have read the same way."""

import pytest

from app.http.cached_headers import MAX_SAME, CachedHeader, RequestHead

FIELDS = b"host: x\r\nContent-Type: image/png\r\n"
FIRST = b"POST /predict?top_k=2 HTTP/1.1\r\n" + FIELDS + b"Content-Length: 5\r\naccept: */*\r\n\r\n12345"
PARSED = [(b"host", b"x"), (b"content-type", b"image/png"), (b"content-length", b"5"), (b"accept", b"*/*")]


def cached(request=FIRST, headers=PARSED):
    return CachedHeader.of(request, RequestHead(headers, b"top_k=2"))


@pytest.mark.parametrize("body", [b"abcde", b"", b"x" * 12_345, b"\r\n\r\n", b"content-length: 9\r\n\r\n"])
def test_another_body_of_any_length_is_found(body):
    request = FIRST.replace(b"Length: 5", b"Length: %d" % len(body)).removesuffix(b"12345") + body
    assert cached().match(request)[1:] == (len(body), body)


OTHERS = {
    "another path": FIRST.replace(b"/predict", b"/redpict"),
    "another query": FIRST.replace(b"top_k=2", b"top_k=3"),
    "another method": FIRST.replace(b"POST", b"PUTS"),
    "another value before the length": FIRST.replace(b"host: x", b"host: y"),
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
def test_what_differs_in_anything_else_does_not_match(name):
    assert cached().match(OTHERS[name]) is None


@pytest.mark.parametrize("behind", [b"", b"1234", b"12345P", b"12345" + FIRST])
def test_what_is_behind_the_header_is_told_with_the_length_that_it_has_to_have(behind):
    assert cached().match(FIRST.removesuffix(b"12345") + behind)[1:] == (5, behind)


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
    assert cached(UNUSUAL[name]) is None


def test_a_length_within_another_fields_value_is_not_taken_for_the_length():
    decoy = FIRST.replace(b"host: x", b"host: x\r\nx-note: content-length: 7")
    one = cached(decoy, [*PARSED, (b"x-note", b"content-length: 7")])
    assert one.match(decoy.replace(b"h: 5\r", b"h: 2\r").replace(b"12345", b"ab"))[1:] == (2, b"ab")
    assert one.match(decoy.replace(b"length: 7", b"length: 5")) is None


# As it comes through a proxy.
TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
TOLD_APART = FIRST.replace(
    b"Content-Length",
    b"X-Forwarded-For: 10.0.0.7, 10.0.0.1\r\ntraceparent: 00-%s-00f067aa0ba902b7-01\r\nContent-Length" % TRACE,
).replace(b"accept", b"X-Request-ID: one\r\naccept")
PARSED_APART = [*PARSED, (b"traceparent", b"00-%s-00f067aa0ba902b7-01" % TRACE)]


def test_what_only_tells_requests_apart_may_differ_and_names_the_request():
    first = cached(TOLD_APART, [*PARSED_APART, (b"x-request-id", b"one")])
    one = first.match(TOLD_APART.replace(b": one", b": another.one").replace(b"0.7, 1", b"0.255, 2001::1, 1"))
    assert one is not None
    assert (one[0].given_id, one[1:]) == (b"another.one", (5, b"12345"))
    assert (one[0].content_type, one[0].parameters.top_k) == ("image/png", 2)
    assert first.head.given_id == b"one"


def test_a_request_without_an_id_is_named_by_its_own_trace():
    without = TOLD_APART.replace(b"X-Request-ID: one\r\n", b"")
    found = cached(without, PARSED_APART).match(without.replace(TRACE, TRACE[::-1]))
    assert found[0].given_id == TRACE[::-1]
    assert cached(without, PARSED_APART).match(without.replace(b"00-" + TRACE, b"ff-"))[0].given_id == b""


DIFFERENT_IDS = {
    "none": b"x-request-id: ",
    "a control character": b"x-request-id: a\0b",
    "a tab": b"x-request-id: a\tb",
    "a line's end of another kind": b"x-request-id: a\nb: c",
    "two lines": b"x-request-id: a\r\nb: c",
    "a carriage return": b"x-request-id: a\rb",
    "a letter of Latin-1": b"x-request-id: \xe4",
    "a space behind it": b"x-request-id: a ",
    "two spaces before it": b"x-request-id:  a",
    "a long one": b"x-request-id: " + b"a" * 513,
}


@pytest.mark.parametrize("name", DIFFERENT_IDS)
def test_an_id_that_the_parser_would_read_in_another_way_or_not_is_left_to_it(name):
    usual = FIRST.replace(b"accept", b"x-request-id: usual\r\naccept")
    one = cached(usual, [*PARSED, (b"x-request-id", b"usual")])
    assert one.match(usual.replace(b"x-request-id: usual", b"x-request-id: " + b"a" * 512)) is not None
    assert one.match(usual.replace(b"x-request-id: usual", DIFFERENT_IDS[name])) is None


@pytest.mark.parametrize("value", [b"", b"a\tb", b"\xe4", b"a" * 513, b"one "])
def test_a_header_with_an_id_of_an_unusual_form_is_not_remembered(value):
    unusual = FIRST.replace(b"accept", b"x-request-id: " + value + b"\r\naccept")
    assert cached(unusual, [*PARSED, (b"x-request-id", value)]) is None


def test_of_an_id_that_is_given_twice_the_first_counts():
    twice = FIRST.replace(b"accept", b"x-request-id: one\r\nX-Request-ID: two\r\naccept")
    first = cached(twice, [*PARSED, (b"x-request-id", b"one"), (b"x-request-id", b"two")])
    assert first.match(twice.replace(b": one", b": three"))[0].given_id == b"three"
    assert first.match(twice.replace(b": two", b": three"))[0].given_id == b"one"
    assert first.match(twice.replace(b": two", b": \0")) is None


def test_a_body_of_another_kind_is_judged_by_its_own_content_type():
    other = FIRST.replace(b"image/png", b"multipart/form-data; boundary=b17")
    assert cached().match(other)[0].content_type == "multipart/form-data; boundary=b17"


def test_a_header_says_what_requests_are_judged_by():
    twice = [(b"x-request-id", b"first"), (b"x-request-id", b"second"), (b"authorization", b"Bearer \xe4")]
    head = RequestHead([*twice, (b"content-encoding", b"gzip"), (b"content-encoding", b"br")], b"top_k=7")
    assert (head.given_id, head.key, head.content_type) == (b"first", "Bearer ä", "")
    assert (head.codings, RequestHead(twice, b"").codings) == (["gzip", "br"], [])
    assert head.parameters.top_k == 7
    assert RequestHead([(b"x-timeout-ms", b"soon")], b"").parameters.bad == ("x-timeout-ms",)


def test_a_header_that_comes_again_to_the_last_byte_is_looked_up():
    first = cached()
    again = FIRST.replace(b"Length: 5", b"Length: 7")
    found = first.match(again)
    assert found is not None
    assert found[1:] == (7, b"12345")
    for body in (b"abcdefg", b"", b"\r\n\r\n"):
        other = first.match(again.removesuffix(b"12345") + body)
        assert other is not None
        assert other[0] is found[0]
        assert other[1:] == (7, body)


def test_few_headers_are_kept_and_none_that_is_long_or_has_an_id():
    first = cached(TOLD_APART, [*PARSED_APART, (b"x-request-id", b"one")])
    assert first.match(TOLD_APART.replace(b": one", b": two")) is not None
    assert first._same == {}
    long = FIRST.replace(b"host: x", b"host: " + b"x" * 512)
    first = cached(long)
    assert first.match(long) is not None
    assert first._same == {}
    first = cached()
    for length in range(1000):
        request = FIRST.replace(b"Length: 5", b"Length: %d" % length)
        assert first.match(request)[1:] == (length, b"12345")
        assert len(first._same) <= MAX_SAME
