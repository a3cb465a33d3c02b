"""What a request is called: by its caller, by its trace, or anew."""

import pytest

from app.http.request_ids import given_id_in, request_id_of

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = b"00-%s-00f067aa0ba902b7-01" % TRACE


def test_the_callers_own_id_goes_before_its_traces():
    assert given_id_in({b"x-request-id": b"mine", b"traceparent": PARENT}) == b"mine"
    assert given_id_in({b"x-request-id": b"", b"traceparent": PARENT}) == TRACE
    assert given_id_in({}) == b""


@pytest.mark.parametrize("later", [PARENT, b"01-%s-00f067aa0ba902b7-01-more" % TRACE])
def test_a_trace_has_an_id(later):
    assert given_id_in({b"traceparent": later}) == TRACE


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        b"junk",
        PARENT.upper(),
        PARENT.replace(b"00-", b"ff-", 1),
        PARENT.replace(TRACE, b"0" * 32),
        PARENT.replace(TRACE, TRACE[1:]),
        PARENT + b"0",
        b" " + PARENT,
        b"00-" * 20_000,
    ],
    ids=lambda wrong: str(len(wrong)),
)
def test_what_is_no_trace_parent_says_nothing(wrong):
    assert given_id_in({b"traceparent": wrong}) == b""


@pytest.mark.parametrize("given", [b"a" * 128, b"AZaz09._:/+=-"])
def test_a_sane_id_is_kept(given):
    assert request_id_of(given) == given.decode()


@pytest.mark.parametrize("given", [b"", b"a" * 129, b"a b", b"a\n", b"a@b", b'"', b"\xe4"])
def test_in_place_of_any_other_there_are_128_bits_in_32_digits(given, monkeypatch):
    monkeypatch.setattr("app.http.request_ids.getrandbits", lambda bits: bits)
    assert request_id_of(given) == f"{128:032x}"
