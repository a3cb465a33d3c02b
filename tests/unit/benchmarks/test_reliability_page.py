"""docs/reliability.md says what the files say."""

from benchmarks import reliability_page
from benchmarks.records import newest
from benchmarks.reliability_page import PAGE, filled


def test_the_tables_of_the_page_are_those_of_the_files():
    assert filled(PAGE.read_text()) == PAGE.read_text()
    assert PAGE.read_text().count("<!-- end -->") == 4


def test_an_overload_measured_in_windows_shows_them_and_the_control(monkeypatch):
    """And an older file, which has none of that, has the same rows but the control's."""
    one, path = newest("reliability/overload.json")
    added = {
        "after": {"windows_per_s": [3.5]},
        "window_s": 2.0,
        "connections_before": 3000,
        "connections_opened": 7,
        "goodput_share_per_core": 0.93,
        "probe_sent_late": 4,
        "control_probes": 600,
        "control_probe_p50_ms": 1.0,
        "control_probe_p99_ms": 9.0,
        "control_probe_slowest_ms": 30.0,
    }
    before = {key: value for key, value in one["before"].items() if key != "windows_per_s"}
    old = {key: value for key, value in one.items() if key not in added} | {"before": before}
    new = old | added | {"before": before | {"windows_per_s": [1.5, 2.5]}}
    monkeypatch.setattr(reliability_page, "newest", lambda _name: (old, path))
    old_text = reliability_page.overload()
    for word in ("median of", "connections opened", "by core", "sent more than 10 ms late, which", "does nothing"):
        assert word not in old_text
    monkeypatch.setattr(reliability_page, "newest", lambda _name: (new, path))
    text = reliability_page.overload()
    assert "requests/s, median of 2 times 2 s: 1.5, 2.5 |" in text
    assert "; 3,000 connections opened before, 7 meanwhile) |" in text
    assert "; 93% by core that sender and prober left to the service |" in text
    assert "(4 sent more than 10 ms late, which is not counted) |" in text
    assert "| the same of a server that does nothing (600) | | p50 1.0 ms, p99 9.0 ms, slowest 30.0 ms |" in text
    assert len(text.splitlines()) == len(old_text.splitlines()) + 1
