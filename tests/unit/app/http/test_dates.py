"""The date that answers bear."""

from types import SimpleNamespace

from app.http.dates import date_line


def test_the_date_is_made_anew_with_every_second_that_has_begun(monkeypatch):
    clock = iter([784111777.0, 784111777.9, 784111778.0])
    monkeypatch.setattr("app.http.dates.time", SimpleNamespace(time=lambda: next(clock)))
    assert [date_line() for _ in range(3)] == [
        b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        b"date: Sun, 06 Nov 1994 08:49:37 GMT\r\n",
        b"date: Sun, 06 Nov 1994 08:49:38 GMT\r\n",
    ]
