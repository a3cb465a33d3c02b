import pytest

from benchmarks import own_python

pytestmark = pytest.mark.anyio


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(own_python, "REQUESTS", 100)
    monkeypatch.setattr(own_python, "ROUNDS", 1)
    monkeypatch.setattr(own_python, "prepare_process", lambda: None)


async def test_each_form_is_answered_as_it_has_to_be_and_timed(few):
    (took,) = await own_python.measure()
    assert set(took) == set(own_python.FORMS)
    assert all(microseconds > 0 for microseconds in took.values())


async def test_another_answer_than_that_is_no_figure(few, monkeypatch):
    monkeypatch.setattr(own_python, "FORMS", {"never so": ((own_python.ACCEPT,), b"201")})
    with pytest.raises(RuntimeError, match=r"HTTP/1.1 200"):
        await own_python.measure()
