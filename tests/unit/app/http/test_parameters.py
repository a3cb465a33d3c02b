"""What a request may ask for, and what it gets."""

import pytest

from app.errors import BadParameter, BodyTooSlow, DeadlinePassed
from app.http.parameters import Parameters


@pytest.mark.parametrize(("asked_ms", "seconds"), [(None, 2.0), (1, 0.001), (1999, 1.999), (2001, 2.0), (10**30, 2.0)])
def test_a_caller_may_ask_for_less_time_than_the_service_gives_but_not_for_more(asked_ms, seconds):
    parameters = Parameters(x_timeout_ms=asked_ms)
    assert parameters.resolve(10, 2000, 100.0).deadline == 100.0 + seconds
    deadline = parameters.body_deadline(2000, 2.5)
    assert (deadline.timeout_s, type(deadline.error)) == (seconds, DeadlinePassed)


@pytest.mark.parametrize("body_timeout_s", [1.5, 2.0])
def test_a_body_is_too_slow_where_its_own_time_is_over_first(body_timeout_s):
    deadline = Parameters(x_timeout_ms=3000).body_deadline(2000, body_timeout_s)
    assert (deadline.timeout_s, type(deadline.error)) == (body_timeout_s, BodyTooSlow)


def test_as_many_classes_as_there_are_may_be_asked_for():
    for asked, gets in ((None, 10), (1, 1), (10, 10)):
        assert Parameters(top_k=asked).resolve(10, 2000, 0.0).top_k == gets
    with pytest.raises(BadParameter) as refused:
        Parameters(top_k=11).resolve(10, 2000, 0.0)
    assert refused.value.detail == "top_k must be from 1 to 10."


@pytest.mark.parametrize("wrong", [b"", b"0", b"1.5", b"\xff", b"9" * 5000])
def test_a_timeout_that_is_no_positive_integer_is_bad(wrong):
    assert Parameters.read(b"top_k=3", wrong) == Parameters(3, None, ("x-timeout-ms",))
